//! Envoy's question and the answer to it: descriptors to rules, rules to buckets.
//!
//! A request with several descriptors passes if each of them does, and only then is any of them
//! charged. Each distinct descriptor has a bucket of its own, under the limit of its rule.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use arc_swap::ArcSwap;

use super::descriptors::{Rules, Unit};
use super::message::{
    DescriptorStatus, Duration, HeaderValue, OK, OVER_LIMIT, RateLimit, RateLimitDescriptor,
    RateLimitOverride, RateLimitRequest, RateLimitResponse,
};
use crate::limiter::spec::DEFAULT_LOG_LIMIT;
use crate::limiter::{Answer, Call, Class, IdKind, PolicySpec, QuotaSpec, RateLimiter, SpecError};
use crate::policy::model::Algorithm;

/// Most descriptors in a request.
pub const MAX_DESCRIPTORS: usize = 256;
/// Most distinct limits that requests bring along. Each takes a policy for good.
pub const MAX_OVERRIDES: usize = 4_096;

const SECOND_NS: u64 = 1_000_000_000;

/// Why a request is not answered; the text is for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No domain.
    #[error("`domain` is empty")]
    Domain,
    /// No descriptors.
    #[error("`descriptors` is empty")]
    NoDescriptors,
    /// Too many of them.
    #[error("`descriptors` has {0} entries; it may have at most {MAX_DESCRIPTORS}")]
    Descriptors(usize),
    /// An override's unit.
    #[error("`limit.unit` is {0}; it must be a unit of `envoy.type.v3.RateLimitUnit`")]
    Unit(i32),
    /// Too many distinct overrides.
    #[error("{MAX_OVERRIDES} distinct limits of requests are in use; configure limits instead")]
    Overrides,
    /// The limiter cannot enforce an override.
    #[error("{0}")]
    Spec(#[from] SpecError),
}

/// What applies where a rule does.
#[derive(Clone, Copy, Debug)]
enum Action {
    Unlimited,
    Never,
    Limited(Class),
}

/// The rules in force.
#[derive(Default)]
struct Active {
    rules: Rules,
    /// One for each rule.
    actions: Vec<Action>,
}

/// Answers Envoy's questions from a limiter.
pub struct Service {
    limiter: RateLimiter,
    active: ArcSwap<Active>,
    /// Classes by the place of their rule, and those whose rules are gone.
    classes: Mutex<(HashMap<String, Class>, Vec<Class>)>,
    /// By requests, unit, and whether in shadow mode.
    overrides: RwLock<HashMap<(u32, i32, bool), Class>>,
    shadow: AtomicBool,
}

/// What is to be asked about one descriptor.
struct Plan<'a> {
    ask: Ask,
    shown: Option<(u32, Unit)>,
    name: &'a str,
    shadow: bool,
    quota_mode: bool,
}

#[derive(Clone, Copy)]
enum Ask {
    /// Nothing applies.
    Free,
    Unlimited,
    Never,
    Limiter(Call),
}

impl Service {
    /// A service that knows no domain yet: everything passes.
    #[must_use]
    pub fn new(limiter: RateLimiter) -> Self {
        Self {
            limiter,
            active: ArcSwap::default(),
            classes: Mutex::default(),
            overrides: RwLock::default(),
            shadow: AtomicBool::new(false),
        }
    }

    /// Puts rules in force, all or none. A rule at a place where one was before keeps its buckets:
    /// what is owed stays owed, up to the new limit.
    ///
    /// In `shadow`, whatever the rules say, everything passes and is counted.
    pub fn replace(&self, mut rules: Rules, shadow: bool) -> Result<(), SpecError> {
        for rule in &mut rules.rules {
            rule.shadow |= shadow;
        }
        let mut held = self.classes();
        let (known, spare) = &mut *held;
        let kept: HashSet<&str> = rules.rules.iter().map(|rule| rule.place.as_str()).collect();
        let mut free: Vec<Class> = spare.clone();
        free.extend(
            known
                .iter()
                .filter(|(place, _)| !kept.contains(place.as_str()))
                .map(|(_, class)| *class),
        );
        let mut changes = Vec::new();
        let mut places = Vec::new();
        for rule in &rules.rules {
            if let Some((requests @ 1.., unit)) = rule.rate {
                let spec = spec(requests, unit, rule.shadow)?;
                let class = known.get(&rule.place).copied().or_else(|| free.pop());
                changes.push((class, spec));
                places.push(rule.place.clone());
            }
        }
        let classes = self.limiter.change_classes(&changes)?;
        *spare = free;
        *known = places.into_iter().zip(classes).collect();
        self.shadow.store(shadow, Ordering::Relaxed);
        let actions = rules
            .rules
            .iter()
            .map(|rule| match (rule.rate, known.get(&rule.place)) {
                (None, _) => Action::Unlimited,
                (Some(_), Some(class)) => Action::Limited(*class),
                (Some(_), None) => Action::Never,
            })
            .collect();
        self.active.store(Arc::new(Active { rules, actions }));
        Ok(())
    }

    fn classes(&self) -> MutexGuard<'_, (HashMap<String, Class>, Vec<Class>)> {
        self.classes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a request now.
    pub fn answer(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, Refused> {
        let descriptors = request.descriptors.as_slice();
        match (request.domain.as_str(), descriptors.len()) {
            ("", _) => return Err(Refused::Domain),
            (_, 0) => return Err(Refused::NoDescriptors),
            (_, 1..=MAX_DESCRIPTORS) => {}
            (_, more) => return Err(Refused::Descriptors(more)),
        }
        let begin_ns = self.limiter.now_ns();
        let active = self.active.load();
        let mut id = Vec::with_capacity(128);
        let mut plans = Vec::with_capacity(descriptors.len());
        let mut replaced: Vec<&str> = Vec::new();
        for descriptor in descriptors {
            let plan = self.plan(&active, request, descriptor, &mut id, &mut replaced)?;
            plans.push(plan);
        }
        if !replaced.is_empty() {
            for plan in &mut plans {
                if !plan.name.is_empty() && replaced.contains(&plan.name) {
                    plan.ask = Ask::Free;
                    plan.shown = None;
                }
            }
        }
        let response = self.decide(&plans);
        let took_ns = self.limiter.now_ns().saturating_sub(begin_ns);
        self.limiter.observe_duration(took_ns, plans.len() as u64);
        Ok(response)
    }

    fn plan<'a>(
        &self,
        active: &'a Active,
        request: &RateLimitRequest,
        descriptor: &RateLimitDescriptor,
        id: &mut Vec<u8>,
        replaced: &mut Vec<&'a str>,
    ) -> Result<Plan<'a>, Refused> {
        let hits = descriptor
            .hits_addend
            .map_or_else(|| u64::from(request.hits_addend.max(1)), |hits| hits.value);
        let free = Plan {
            ask: Ask::Free,
            shown: None,
            name: "",
            shadow: false,
            quota_mode: false,
        };
        let limiter = |class: Class, id: &[u8]| {
            Ask::Limiter(Call {
                key: self.limiter.meet(IdKind::Descriptor, id),
                class,
                // No hits: whether one would pass.
                cost: hits.max(1),
                charge: hits > 0,
            })
        };
        if let Some(limit) = descriptor.limit
            && active.rules.knows(&request.domain)
        {
            let unit = Unit::of_number(limit.unit).ok_or(Refused::Unit(limit.unit))?;
            name_bucket(id, &request.domain, descriptor, &[]);
            let ask = match self.override_class(limit, unit)? {
                Some(class) => limiter(class, id),
                None => Ask::Never,
            };
            return Ok(Plan {
                ask,
                shown: Some((limit.requests_per_unit, unit)),
                shadow: self.shadow.load(Ordering::Relaxed),
                ..free
            });
        }
        let Some(found) = active.rules.find(&request.domain, &descriptor.entries) else {
            return Ok(free);
        };
        let (Some(rule), Some(action)) = (
            active.rules.rules.get(found.rule),
            active.actions.get(found.rule),
        ) else {
            return Ok(free);
        };
        replaced.extend(rule.replaces.iter().map(String::as_str));
        let ask = match *action {
            Action::Unlimited => Ask::Unlimited,
            Action::Never => Ask::Never,
            Action::Limited(class) => {
                name_bucket(id, &request.domain, descriptor, &found.shared);
                limiter(class, id)
            }
        };
        Ok(Plan {
            ask,
            shown: rule.rate,
            name: &rule.name,
            shadow: rule.shadow,
            quota_mode: rule.quota_mode,
        })
    }

    /// The class of a limit that a request brings along; `None` where it lets nothing pass.
    fn override_class(
        &self,
        limit: RateLimitOverride,
        unit: Unit,
    ) -> Result<Option<Class>, Refused> {
        if limit.requests_per_unit == 0 {
            return Ok(None);
        }
        let shadow = self.shadow.load(Ordering::Relaxed);
        let key = (limit.requests_per_unit, limit.unit, shadow);
        let read = self.overrides.read();
        if let Some(class) = read.unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Some(*class));
        }
        let mut overrides = self
            .overrides
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(class) = overrides.get(&key) {
            return Ok(Some(*class));
        }
        if overrides.len() >= MAX_OVERRIDES {
            return Err(Refused::Overrides);
        }
        let mut spec = spec(limit.requests_per_unit, unit, shadow)?;
        // Apart from the rules' classes, which change when the files do.
        if let Some(quota) = spec.quotas.first_mut() {
            quota.name = Arc::from("override");
        }
        let class = self.limiter.class(&spec)?;
        overrides.insert(key, class);
        Ok(Some(class))
    }

    fn decide(&self, plans: &[Plan<'_>]) -> RateLimitResponse {
        let now_ns = self.limiter.now_ns();
        let asked = plans
            .iter()
            .filter(|plan| matches!(plan.ask, Ask::Limiter(_)))
            .count();
        let never = plans
            .iter()
            .any(|plan| matches!(plan.ask, Ask::Never) && !plan.shadow);
        let ask = |plan: &Plan<'_>, charge: bool| match plan.ask {
            Ask::Limiter(call) => Some(self.limiter.call(
                &Call {
                    charge: call.charge && charge,
                    ..call
                },
                now_ns,
            )),
            _ => None,
        };
        if asked <= 1 && !never {
            let answers: Vec<_> = plans.iter().map(|plan| ask(plan, true)).collect();
            return respond(plans, &answers);
        }
        // All or nothing: look first. Whoever refuses is asked again in earnest, to be counted.
        let mut answers: Vec<_> = plans.iter().map(|plan| ask(plan, false)).collect();
        let mut charged = vec![false; plans.len()];
        if is_over(plans, &answers) {
            for ((plan, answer), charged) in plans.iter().zip(&mut answers).zip(&mut charged) {
                if answer.is_some_and(|answer| !answer.allowed) {
                    *answer = ask(plan, true);
                    *charged = true;
                }
            }
        }
        if !is_over(plans, &answers) {
            for ((plan, answer), charged) in plans.iter().zip(&mut answers).zip(&charged) {
                if !charged {
                    *answer = ask(plan, true);
                }
            }
        }
        respond(plans, &answers)
    }
}

/// Whether a plan with this answer refuses.
fn refuses(plan: &Plan<'_>, answer: Option<&Answer>) -> bool {
    match (plan.ask, answer) {
        (Ask::Never, _) => !plan.shadow,
        (_, Some(answer)) => !answer.allowed,
        _ => false,
    }
}

/// Whether the request is refused: by any limit, or by all of its quotas together.
fn is_over(plans: &[Plan<'_>], answers: &[Option<Answer>]) -> bool {
    let mut quotas = 0;
    let mut refused_quotas = 0;
    for (plan, answer) in plans.iter().zip(answers) {
        let refused = refuses(plan, answer.as_ref());
        if plan.quota_mode {
            quotas += 1;
            refused_quotas += u32::from(refused);
        } else if refused {
            return true;
        }
    }
    quotas > 0 && quotas == refused_quotas
}

fn respond(plans: &[Plan<'_>], answers: &[Option<Answer>]) -> RateLimitResponse {
    let over = is_over(plans, answers);
    let statuses = plans
        .iter()
        .zip(answers)
        .map(|(plan, answer)| status(plan, answer.as_ref()))
        .collect();
    RateLimitResponse {
        overall_code: if over { OVER_LIMIT } else { OK },
        statuses,
        response_headers_to_add: if over {
            headers(plans, answers)
        } else {
            Vec::new()
        },
    }
}

fn status(plan: &Plan<'_>, answer: Option<&Answer>) -> DescriptorStatus {
    let over = refuses(plan, answer);
    let limit_remaining = match (plan.ask, answer) {
        (Ask::Unlimited, _) => u32::MAX,
        (_, Some(answer)) => u32::try_from(answer.remaining).unwrap_or(u32::MAX),
        _ => 0,
    };
    let reset_ns = match (plan.ask, answer) {
        (_, Some(answer)) => Some(answer.reset_after_ns),
        (Ask::Never, None) => plan.shown.map(|(_, unit)| unit.as_ns()),
        _ => None,
    };
    DescriptorStatus {
        code: if over { OVER_LIMIT } else { OK },
        current_limit: plan.shown.map(|(requests_per_unit, unit)| RateLimit {
            requests_per_unit,
            unit: unit as i32,
            name: plan.name.to_owned(),
        }),
        limit_remaining,
        duration_until_reset: reset_ns.map(|ns| Duration {
            seconds: (ns / SECOND_NS) as i64,
            nanos: (ns % SECOND_NS) as i32,
        }),
    }
}

/// What a refused client is told: of the limit that keeps it waiting longest.
fn headers(plans: &[Plan<'_>], answers: &[Option<Answer>]) -> Vec<HeaderValue> {
    let wait = |plan: &Plan<'_>, answer: &Option<Answer>| match answer {
        Some(answer) if answer.retry_after_ns != u64::MAX => answer.retry_after_ns,
        // It never will: in a while it may be configured otherwise.
        _ => plan.shown.map_or(SECOND_NS, |(_, unit)| unit.as_ns()),
    };
    let longest = plans
        .iter()
        .zip(answers)
        .filter(|(plan, answer)| refuses(plan, answer.as_ref()))
        .max_by_key(|(plan, answer)| wait(plan, answer));
    let Some((plan, answer)) = longest else {
        return Vec::new();
    };
    let seconds = wait(plan, answer).div_ceil(SECOND_NS);
    let header = |key: &str, value: String| HeaderValue {
        key: key.to_owned(),
        value,
    };
    let mut headers = vec![header("retry-after", seconds.to_string())];
    if let Some((requests, unit)) = plan.shown {
        let window = unit.as_ns() / SECOND_NS;
        headers.push(header(
            "ratelimit-policy",
            format!("\"default\";q={requests};w={window}"),
        ));
        headers.push(header("ratelimit", format!("\"default\";r=0;t={seconds}")));
    }
    headers
}

/// Writes the name of a descriptor's bucket: every part behind its length, so that no two
/// descriptors have the same. A shared value stands as its pattern, marked as one.
fn name_bucket(
    id: &mut Vec<u8>,
    domain: &str,
    descriptor: &RateLimitDescriptor,
    shared: &[(usize, &str)],
) {
    let part = |id: &mut Vec<u8>, kind: u8, text: &str| {
        id.push(kind);
        id.extend_from_slice(&(text.len() as u32).to_le_bytes());
        id.extend_from_slice(text.as_bytes());
    };
    id.clear();
    part(id, b'd', domain);
    for (number, entry) in descriptor.entries.iter().enumerate() {
        part(id, b'k', &entry.key);
        match shared.iter().find(|(shared, _)| *shared == number) {
            Some((_, pattern)) => part(id, b'p', pattern),
            None => part(id, b'v', &entry.value),
        }
    }
}

fn spec(requests: u32, unit: Unit, shadow: bool) -> Result<PolicySpec, SpecError> {
    let rate_limit = u64::from(requests);
    PolicySpec::of_class(
        "descriptor",
        vec![QuotaSpec {
            name: Arc::from("descriptor"),
            algorithm: if rate_limit <= DEFAULT_LOG_LIMIT {
                Algorithm::SlidingLog
            } else {
                Algorithm::SlidingWindow
            },
            rate_limit,
            window_ns: unit.as_ns(),
            burst: rate_limit,
            shadow,
            consistency: None,
            on_store_loss: crate::policy::model::OnStoreLoss::Hold,
        }],
    )
}
