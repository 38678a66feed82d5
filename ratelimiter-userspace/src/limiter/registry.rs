//! Every policy in force: compiled once, shared by all clients whose limits are equal.
//!
//! One edit at a time: [`Registry::edit`] works on a copy of the table and publishes it whole. The
//! fast path reads [`Rules`] only; the table is for whoever needs the quotas (blocks, conversions,
//! descriptions). Past generations are remembered so that a client met later can be converted.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::{ArcSwap, Guard};
use ratelimiter_common::window::WindowLimit;
use ratelimiter_common::window::word::Packing;

use super::fleet::fleet_terms;
use super::meter::Meter;
use super::rule::{INDEX_BITS, Kind, PolicyWord, Rule, Rules, UnitClock};
use super::spec::{PolicySpec, QuotaSpec, SpecError};
use crate::policy::model::{Algorithm, Consistency};

/// Past generations remembered; beyond it the oldest is forgotten, and a client still in it is
/// taken for one that has used its whole limit.
const HISTORY: usize = 4_096;

/// A scaled burst is never below this, in ticks: four requests, for those who send far below their
/// limit send two at once now and then.
const LEAST_BURST: u64 = 4 << super::rule::TICK_BITS;

/// What a unit clock reads when a policy is made: an idle bucket's word, 0, is far in its past.
const CLOCK_BASE: u64 = 1 << 40;

/// A policy, compiled.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub(super) spec: Arc<PolicySpec>,
    pub(super) word: PolicyWord,
    pub(super) rule: Rule,
    pub(super) meters: Vec<Meter>,
    /// State words of a client's block; 0 where one word is enough.
    pub(super) block_words: usize,
    /// The one-word policy of clients for which there was no block.
    pub(super) companion: Option<u32>,
}

type Table = Vec<Option<Arc<Compiled>>>;

/// What is common to all policies of one limiter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    /// Stamps come from the caller: states carry their own time.
    pub(super) caller_clock: bool,
    /// Limits that do not say otherwise hold over a fleet.
    pub(super) fleet: bool,
}

struct Inner {
    next: u32,
    history: HashMap<u32, Arc<Compiled>>,
    order: VecDeque<u32>,
    by_spec: HashMap<Arc<PolicySpec>, u32>,
    factors: HashMap<Arc<str>, f64>,
    /// Share of its burst that every token bucket has.
    burst_scale: f64,
    /// Names of quotas whose burst stays as it is configured.
    burst_fixed: BTreeSet<String>,
    watched: HashMap<Arc<str>, u8>,
}

/// See the module's text.
pub(super) struct Registry {
    pub(super) rules: Rules,
    table: ArcSwap<Table>,
    inner: Mutex<Inner>,
    common: Common,
}

/// An edit under way; published when [`Registry::edit`] returns.
pub(super) struct Edit<'a> {
    inner: MutexGuard<'a, Inner>,
    table: Table,
    rules: &'a Rules,
    changed: Vec<u32>,
    interned: Vec<Arc<PolicySpec>>,
    common: Common,
    now_ns: u64,
}

impl Registry {
    pub(super) fn new(capacity: usize, common: Common) -> std::io::Result<Self> {
        Ok(Self {
            rules: Rules::new(capacity)?,
            table: ArcSwap::from_pointee(vec![None]),
            inner: Mutex::new(Inner {
                next: 1,
                history: HashMap::new(),
                order: VecDeque::new(),
                by_spec: HashMap::new(),
                factors: HashMap::new(),
                burst_scale: 1.0,
                burst_fixed: BTreeSet::new(),
                watched: HashMap::new(),
            }),
            common,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `edit` on a copy of the table, and publishes it if it succeeds.
    pub(super) fn edit<R>(
        &self,
        now_ns: u64,
        edit: impl FnOnce(&mut Edit<'_>) -> Result<R, SpecError>,
    ) -> Result<R, SpecError> {
        let mut work = Edit {
            inner: self.lock(),
            table: self.table.load().as_ref().clone(),
            rules: &self.rules,
            changed: Vec::new(),
            interned: Vec::new(),
            common: self.common,
            now_ns,
        };
        let result = edit(&mut work);
        if result.is_err() {
            for spec in std::mem::take(&mut work.interned) {
                work.inner.by_spec.remove(&spec);
            }
            return result;
        }
        if !work.changed.is_empty() {
            let table = std::mem::take(&mut work.table);
            for &index in &work.changed {
                if let Some(Some(compiled)) = table.get(index as usize) {
                    work.rules.write(index, &compiled.rule);
                }
            }
            self.table.store(Arc::new(table));
        }
        result
    }

    /// Waits until no edit is half published.
    pub(super) fn settled(&self) {
        drop(self.lock());
    }

    /// The table in force.
    pub(super) fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// The policy numbered `index`, as it is now.
    pub(super) fn current(&self, index: u32) -> Option<Arc<Compiled>> {
        self.table().get(index as usize)?.clone()
    }

    /// The policy behind `word`, of today or past.
    pub(super) fn behind(&self, word: PolicyWord) -> Option<Arc<Compiled>> {
        if let Some(compiled) = self.current(word.index())
            && compiled.word == word
        {
            return Some(compiled);
        }
        self.lock().history.get(&word.0).map(Arc::clone)
    }

    /// Compiles a policy without putting it in force: to read states that were made under it.
    pub(super) fn compile_apart(&self, spec: &PolicySpec, now_ns: u64) -> Option<Arc<Compiled>> {
        let work = Edit {
            inner: self.lock(),
            table: Vec::new(),
            rules: &self.rules,
            changed: Vec::new(),
            interned: Vec::new(),
            common: self.common,
            now_ns,
        };
        work.compile(0, 0, spec, None).ok().map(Arc::new)
    }

    /// Number of policies in force.
    pub(super) fn len(&self) -> usize {
        self.table().iter().flatten().count()
    }
}

impl Edit<'_> {
    /// Returns the number of the policy `spec`, made now if there is none.
    pub(super) fn intern(&mut self, spec: &PolicySpec) -> Result<u32, SpecError> {
        if let Some(&index) = self.inner.by_spec.get(spec) {
            return Ok(index);
        }
        let index = self.add(spec)?;
        let spec = Arc::new(spec.clone());
        self.inner.by_spec.insert(Arc::clone(&spec), index);
        self.interned.push(spec);
        Ok(index)
    }

    /// Adds a policy of its own that [`Edit::replace`] may change.
    pub(super) fn add(&mut self, spec: &PolicySpec) -> Result<u32, SpecError> {
        let index = self.inner.next;
        // A policy may need a companion beside it.
        if index as usize + 2 > self.rules.capacity() {
            return Err(SpecError::TooManyPolicies(self.rules.capacity()));
        }
        self.inner.next += 1;
        self.put(index, 0, spec, None)?;
        Ok(index)
    }

    /// Changes what applies under `index`. Where the states keep their meaning they are re-priced
    /// on the spot; else the generation rises and each client is converted when met.
    pub(super) fn replace(&mut self, index: u32, spec: &PolicySpec) -> Result<(), SpecError> {
        let Some(old) = self.table.get(index as usize).cloned().flatten() else {
            return Err(SpecError::TooManyPolicies(index as usize));
        };
        if *old.spec == *spec {
            return Ok(());
        }
        let trial = self.compile(index, old.word.generation(), spec, old.companion)?;
        if same_shape(&old, &trial) {
            return self.put(index, old.word.generation(), spec, Some(&old));
        }
        let generation = (old.word.generation() + 1) & ((1 << (32 - INDEX_BITS)) - 1);
        self.remember(&old);
        self.put(index, generation, spec, None)
    }

    fn remember(&mut self, old: &Arc<Compiled>) {
        self.inner.history.insert(old.word.0, Arc::clone(old));
        self.inner.order.push_back(old.word.0);
        if self.inner.order.len() > HISTORY
            && let Some(oldest) = self.inner.order.pop_front()
        {
            self.inner.history.remove(&oldest);
        }
    }

    /// Scales every policy of `segment` by `factor` in (0, 1]; nobody's debt changes.
    pub(super) fn set_factor(&mut self, segment: &str, factor: f64) -> Result<(), SpecError> {
        let before = self.inner.factors.insert(Arc::from(segment), factor);
        if (before.unwrap_or(1.0) - factor).abs() <= 0.0 {
            return Ok(());
        }
        self.again(|spec| &*spec.segment == segment)
    }

    /// Gives every token bucket this share of its burst; nobody's debt changes.
    pub(super) fn set_burst_scale(
        &mut self,
        scale: f64,
        fixed: BTreeSet<String>,
    ) -> Result<(), SpecError> {
        let before = std::mem::replace(&mut self.inner.burst_scale, scale);
        let were = std::mem::replace(&mut self.inner.burst_fixed, fixed);
        if (before - scale).abs() <= 0.0 && were == self.inner.burst_fixed {
            return Ok(());
        }
        let bucket = |quota: &QuotaSpec| quota.algorithm == Algorithm::TokenBucket;
        self.again(|spec| spec.quotas.iter().any(bucket))
    }

    /// Watches `backend` under `number`, or not at all.
    pub(super) fn watch(&mut self, backend: &str, number: Option<u8>) -> Result<(), SpecError> {
        match number {
            Some(number) => self.inner.watched.insert(Arc::from(backend), number),
            None => self.inner.watched.remove(backend),
        };
        self.again(|spec| &*spec.backend == backend)
    }

    /// Compiles the policies chosen by `which` again.
    fn again(&mut self, which: impl Fn(&PolicySpec) -> bool) -> Result<(), SpecError> {
        let chosen: Vec<Arc<Compiled>> = self
            .table
            .iter()
            .flatten()
            .filter(|old| which(&old.spec))
            .cloned()
            .collect();
        for old in chosen {
            let (index, generation) = (old.word.index(), old.word.generation());
            self.put(index, generation, &old.spec, Some(&old))?;
            self.keep_tokens(index, &old);
        }
        Ok(())
    }

    /// Compiles `spec` and puts it under `index`. `of` is the policy whose clocks go on.
    fn put(
        &mut self,
        index: u32,
        generation: u32,
        spec: &PolicySpec,
        of: Option<&Compiled>,
    ) -> Result<(), SpecError> {
        let before = self.table.get(index as usize).cloned().flatten();
        let mut compiled = self.compile(index, generation, spec, None)?;
        if let Some(of) = of {
            self.go_on(&mut compiled, of);
        }
        if compiled.block_words > 0 {
            let single = companion_of(spec);
            let companion = before.and_then(|before| before.companion);
            compiled.companion = if let Some(companion) = companion {
                self.replace(companion, &single)?;
                Some(companion)
            } else {
                let number = self.inner.next;
                if number as usize >= self.rules.capacity() {
                    return Err(SpecError::TooManyPolicies(self.rules.capacity()));
                }
                self.inner.next += 1;
                self.put(number, 0, &single, None)?;
                Some(number)
            };
        }
        let place = index as usize;
        if self.table.len() <= place {
            self.table.resize(place + 1, None);
        }
        if let Some(entry) = self.table.get_mut(place) {
            *entry = Some(Arc::new(compiled));
        }
        self.changed.push(index);
        Ok(())
    }

    /// Lets the unit clocks of `compiled` go on where those of `old` stand.
    fn go_on(&self, compiled: &mut Compiled, old: &Compiled) {
        let go_on = |clock: &mut UnitClock, old: &UnitClock| {
            *clock = UnitClock::new(
                self.now_ns.max(old.from_ns),
                old.at(self.now_ns),
                clock.speed,
                clock.burst,
            );
        };
        for (meter, old) in compiled.meters.iter_mut().zip(&old.meters) {
            go_on(&mut meter.clock, &old.clock);
        }
        if let (Kind::TokenBucket(clock), Kind::TokenBucket(old)) =
            (&mut compiled.rule.kind, &old.rule.kind)
        {
            go_on(clock, old);
        }
    }

    /// Where a scale has changed the burst: a smaller one takes the tokens beyond it, a larger one
    /// adds none. That is one shift of the clock, for debt is what the burst has beyond the tokens.
    fn keep_tokens(&mut self, index: u32, old: &Compiled) {
        let shift = |clock: &mut UnitClock, old: &UnitClock| {
            clock.base = (clock.base + old.burst).saturating_sub(clock.burst);
        };
        let entry = self.table.get_mut(index as usize).and_then(Option::as_mut);
        if let Some(compiled) = entry.map(Arc::make_mut) {
            for (meter, old) in compiled.meters.iter_mut().zip(&old.meters) {
                shift(&mut meter.clock, &old.clock);
            }
            if let (Kind::TokenBucket(clock), Kind::TokenBucket(old)) =
                (&mut compiled.rule.kind, &old.rule.kind)
            {
                shift(clock, old);
            }
        }
    }

    fn compile(
        &self,
        index: u32,
        generation: u32,
        spec: &PolicySpec,
        companion: Option<u32>,
    ) -> Result<Compiled, SpecError> {
        let factor = self
            .inner
            .factors
            .get(&spec.segment)
            .copied()
            .unwrap_or(1.0);
        let one_word = is_companion(spec);
        let caller_clock = self.common.caller_clock && !one_word;
        let mut meters = Vec::with_capacity(spec.quotas.len());
        let mut offset = 0;
        for quota in &spec.quotas {
            let fixed = self.inner.burst_fixed.contains(&*quota.name);
            let scales = (factor, if fixed { 1.0 } else { self.inner.burst_scale });
            let mut meter = meter(quota, scales, caller_clock, self.now_ns)?;
            if self.common.fleet && !caller_clock {
                meter.fleet = fleet_terms(quota, &meter, scales);
            }
            meter.offset = offset;
            offset += meter.words();
            meters.push(meter);
        }
        let kind = kind(&meters, caller_clock);
        let rule = Rule {
            kind,
            generation,
            shadow: matches!(spec.quotas.as_slice(), [quota] if quota.shadow),
            reduced: factor < 1.0,
            watched: self.inner.watched.get(&spec.backend).copied(),
            shown_limit: spec.quotas.first().map_or(0, |quota| quota.rate_limit),
        };
        Ok(Compiled {
            spec: Arc::new(spec.clone()),
            word: PolicyWord::new(index, generation),
            rule,
            block_words: if kind == Kind::Block { offset } else { 0 },
            meters,
            companion,
        })
    }
}

/// Whether states of `old` mean the same under `new`.
fn same_shape(old: &Compiled, new: &Compiled) -> bool {
    let shadows = |compiled: &Compiled| compiled.spec.quotas.iter().map(|q| q.shadow).collect();
    let same_shadows: [Vec<bool>; 2] = [shadows(old), shadows(new)];
    let [before, after] = same_shadows;
    before == after
        && match (&old.rule.kind, &new.rule.kind) {
            (Kind::Unlimited, Kind::Unlimited) | (Kind::TokenBucket(_), Kind::TokenBucket(_)) => {
                true
            }
            (Kind::Sliding(a, was), Kind::Sliding(b, is))
            | (Kind::Fixed(a, was), Kind::Fixed(b, is)) => a == b && was.window_ns == is.window_ns,
            _ => false,
        }
}

fn kind(meters: &[Meter], caller_clock: bool) -> Kind {
    match meters {
        [] => Kind::Unlimited,
        _ if meters.iter().any(Meter::is_of_fleet) => Kind::Block,
        [meter] if !caller_clock => {
            let (limit, clock) = (meter.limit, meter.clock);
            match meter.algorithm {
                Algorithm::TokenBucket => Kind::TokenBucket(clock),
                Algorithm::SlidingWindow => Packing::sliding(limit.cap, limit.window_ns)
                    .map_or(Kind::Block, |packing| Kind::Sliding(packing, limit)),
                Algorithm::FixedWindow => Packing::fixed(limit.cap, limit.window_ns)
                    .map_or(Kind::Block, |packing| Kind::Fixed(packing, limit)),
                Algorithm::SlidingLog => Kind::Block,
            }
        }
        _ => Kind::Block,
    }
}

fn meter(
    quota: &QuotaSpec,
    (factor, burst_scale): (f64, f64),
    caller_clock: bool,
    now_ns: u64,
) -> Result<Meter, SpecError> {
    let clock = if quota.algorithm == Algorithm::TokenBucket {
        let limit = quota
            .quota()
            .compile()
            .map_err(|error| SpecError::Quota(quota.name.to_string(), error))?;
        let scaled = limit.speed.scaled((factor * 4_294_967_296.0) as u64);
        let from_ns = if caller_clock { 0 } else { now_ns };
        let share = if caller_clock {
            1.0
        } else {
            factor * burst_scale
        };
        let least = limit.burst.min(LEAST_BURST);
        let burst = ((limit.burst as f64 * share) as u64).clamp(least, limit.burst);
        UnitClock::new(from_ns, CLOCK_BASE, scaled, burst)
    } else {
        UnitClock::new(0, 0, ratelimiter_common::vclock::Speed::ONE, 0)
    };
    Ok(Meter {
        algorithm: quota.algorithm,
        limit: WindowLimit {
            // 0.7 * 0.7 of 100 are 49, whatever the last bit says.
            limit: ((quota.rate_limit as f64 * factor + 1e-6) as u64).clamp(1, quota.rate_limit),
            cap: quota.rate_limit,
            window_ns: quota.window_ns,
        },
        clock,
        shadow: quota.shadow,
        caller_clock,
        offset: 0,
        fleet: None,
    })
}

/// Name of the single quota of a companion policy; no configured limit may contain a colon.
const COMPANION: &str = ":companion";

fn is_companion(spec: &PolicySpec) -> bool {
    matches!(spec.quotas.as_slice(), [quota] if &*quota.name == COMPANION)
}

/// The policy of clients whose states found no block: one token bucket with the slowest rate and
/// the smallest burst of all quotas, so that none of them ever admits more than its token bucket
/// would.
fn companion_of(spec: &PolicySpec) -> PolicySpec {
    let slowest = spec.quotas.iter().min_by(|a, b| {
        let cross =
            |a: &QuotaSpec, b: &QuotaSpec| u128::from(a.rate_limit) * u128::from(b.window_ns);
        cross(a, b).cmp(&cross(b, a))
    });
    let burst = spec.quotas.iter().map(|quota| quota.burst).min();
    PolicySpec {
        quotas: slowest
            .map(|slowest| QuotaSpec {
                name: Arc::from(COMPANION),
                algorithm: Algorithm::TokenBucket,
                rate_limit: slowest.rate_limit,
                window_ns: slowest.window_ns,
                burst: burst.unwrap_or(1),
                shadow: spec.quotas.iter().all(|quota| quota.shadow),
                consistency: Some(Consistency::Local),
                on_store_loss: slowest.on_store_loss,
            })
            .into_iter()
            .collect(),
        segment: Arc::clone(&spec.segment),
        backend: Arc::clone(&spec.backend),
    }
}
