//! The simulated fleet: hosts with their buckets, a network that loses and delays, one store.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use ratelimiter_userspace::sync::host::{Exchange, Id, Reading, WHOLE};
use ratelimiter_userspace::sync::{Beat, Entry, Fleet, Host, Ledger, OnStoreLoss, Settled};

use crate::bucket::{Bucket, ONE};
use crate::checks::Broken;
use crate::member::{Bug, Member, buckets, rule, tuning};
use crate::random::Random;
use crate::scenario::{Flow, Happening, MILLI, SECOND, Scenario};

/// What the store's clock reads at the beginning.
const STORE_EPOCH_US: u64 = 1_700_000_000 * SECOND;
/// Width of a slot in which admitted packets are counted.
pub(crate) const SLOT_US: u64 = 100 * MILLI;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Packets(usize),
    Tick(usize),
    AtStore(u64),
    AtHost(u64),
    Happens(usize),
}

#[derive(Clone, Debug)]
enum Question {
    Settle(Exchange),
    Beat(Beat),
}

#[derive(Clone, Debug)]
enum Reply {
    Settled(Settled),
    Fleet(Fleet),
}

/// A question on its way, and the answer to it.
#[derive(Clone, Debug)]
struct Message {
    host: usize,
    sent_us: u64,
    question: Question,
    reply: Option<Reply>,
}

/// The fleet.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    bug: Option<Bug>,
    loud: bool,
    random: Random,
    now_us: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    members: Vec<Member>,
    messages: BTreeMap<u64, Message>,
    next_message: u64,
    pub(crate) ledger: Ledger,
    /// Units admitted by key and slot of [`SLOT_US`], and packets refused by key and slot.
    pub(crate) admitted: Vec<Vec<u64>>,
    pub(crate) denied: Vec<Vec<u64>>,
    /// Units of the first key admitted by host and slot.
    pub(crate) by_host: Vec<Vec<u64>>,
    /// One bucket for the whole fleet that sees every packet at once, and what it admits.
    ideal: Vec<Bucket>,
    pub(crate) due: Vec<Vec<u64>>,
    /// What the most indebted host owed of each key when the store was emptied.
    emptied: Option<(u64, Vec<u64>)>,
    pub(crate) events: u64,
}

impl World {
    pub(crate) fn new(scenario: &Scenario, bug: Option<Bug>, loud: bool) -> Self {
        let mut random = Random::new(scenario.seed ^ 0x5eed);
        let slots = (scenario.until_us / SLOT_US + 1) as usize;
        let members = (0..scenario.hosts)
            .map(|number| Member::new(scenario, number, &mut random))
            .collect();
        let mut world = Self {
            scenario: scenario.clone(),
            bug,
            loud,
            random,
            now_us: 0,
            queue: BinaryHeap::new(),
            order: 0,
            members,
            messages: BTreeMap::new(),
            next_message: 0,
            ledger: Ledger::new(),
            admitted: vec![vec![0; slots]; scenario.keys.len()],
            denied: vec![vec![0; slots]; scenario.keys.len()],
            by_host: vec![vec![0; slots]; scenario.hosts],
            ideal: buckets(scenario, 0),
            due: vec![vec![0; slots]; scenario.keys.len()],
            emptied: None,
            events: 0,
        };
        for (number, flow) in scenario.flows.iter().enumerate() {
            let first = flow.from_us + world.random.below(flow.gap_us);
            world.at(first, Event::Packets(number));
        }
        for host in 0..scenario.hosts {
            let first = world.random.below(scenario.interval_us);
            world.at(first, Event::Tick(host));
        }
        for (number, (at_us, _)) in scenario.happenings.iter().enumerate() {
            world.at(*at_us, Event::Happens(number));
        }
        world
    }

    fn at(&mut self, at_us: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((at_us, self.order, event)));
    }

    /// Runs to the end; the first promise that is broken ends it.
    pub(crate) fn run(&mut self) -> Result<(), Broken> {
        while let Some(Reverse((at_us, _, event))) = self.queue.pop() {
            if at_us > self.scenario.until_us {
                break;
            }
            self.now_us = at_us;
            self.events += 1;
            if self.loud && !matches!(event, Event::Packets(_)) {
                println!("{:>9.3} ms {event:?}", at_us as f64 / 1e3);
            }
            match event {
                Event::Packets(flow) => self.packets(flow)?,
                Event::Tick(host) => self.tick(host)?,
                Event::AtStore(message) => self.at_store(message),
                Event::AtHost(message) => self.at_host(message),
                Event::Happens(number) => self.happens(number),
            }
        }
        Ok(())
    }

    fn slot(&self) -> usize {
        (self.now_us / SLOT_US) as usize
    }

    fn packets(&mut self, number: usize) -> Result<(), Broken> {
        let flow: Flow = self.scenario.flows[number];
        if self.now_us >= flow.until_us {
            return Ok(());
        }
        let gap = if flow.even {
            flow.gap_us
        } else {
            self.random.gap(flow.gap_us)
        };
        self.at(self.now_us + gap, Event::Packets(number));
        let slot = self.slot();
        let rule = rule(&self.scenario, flow.key);
        let member = &mut self.members[flow.host];
        let now_us = member.clock(self.now_us);
        member.seen[flow.key] = true;
        for _ in 0..flow.count {
            if self.ideal[flow.key].admit(self.now_us, false) {
                self.due[flow.key][slot] += 1;
            }
            if !member.buckets[flow.key].admit(now_us, member.closed[flow.key]) {
                self.denied[flow.key][slot] += 1;
                if self.loud {
                    println!("{:>9.3} ms {flow:?}: denied", self.now_us as f64 / 1e3);
                }
                continue;
            }
            self.admitted[flow.key][slot] += 1;
            if flow.key == 0 {
                self.by_host[flow.host][slot] += 1;
            }
            if !member.referees[flow.key].admit(now_us, false) {
                return Err(Broken::OwnBucket(flow.host, flow.key, self.now_us));
            }
            let random = &mut self.random;
            let sampled = member.buckets[flow.key].sampled(|| random.between(1, 63));
            if sampled && member.runs {
                let source = flow.key as u64;
                if member.host.sampled(now_us, source, 32 * ONE, &rule.quota) {
                    member.host.heat(now_us, source);
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, number: usize) -> Result<(), Broken> {
        let jitter = self.scenario.interval_us / 20;
        let next = self.scenario.interval_us - jitter + self.random.below(2 * jitter + 1);
        self.at(self.now_us + next, Event::Tick(number));
        self.refilled()?;
        self.give_up(number);
        if !self.members[number].runs {
            return Ok(());
        }
        let now_us = self.members[number].clock(self.now_us);
        if let Some(beat) = self.members[number].host.beat(now_us) {
            self.ask(number, Question::Beat(beat));
        }
        let member = &mut self.members[number];
        for source in member.host.probes(now_us, 100) {
            if member.seen[source as usize] {
                member.host.heat(now_us, source);
            }
        }
        let mut hot: Vec<u64> = member.host.hot().collect();
        hot.sort_unstable();
        let mut readings = Vec::with_capacity(hot.len());
        for source in hot {
            let bucket = &mut member.buckets[source as usize];
            readings.push(Reading {
                id: Id { source, unit: 0 },
                rule: rule(&self.scenario, source as usize),
                spent: bucket.spent,
                owed: bucket.owed(now_us),
            });
        }
        let mut exchanges = member.host.due(now_us, &readings);
        for exchange in &mut exchanges {
            for entry in &mut exchange.entries {
                member.spoil(entry, self.bug);
            }
        }
        self.turn(number, now_us);
        for source in self.members[number].host.cold(now_us) {
            self.members[number].host.cool(source);
        }
        for exchange in exchanges {
            self.ask(number, Question::Settle(exchange));
        }
        Ok(())
    }

    /// Turns the clocks as the host says.
    fn turn(&mut self, number: usize, now_us: u64) {
        let member = &mut self.members[number];
        for scale in member.host.scales(now_us) {
            if scale.part == WHOLE && self.bug == Some(Bug::StaysScaled) {
                continue;
            }
            member.buckets[scale.source as usize].turn(now_us, scale.part);
        }
        let share = member.host.strict(now_us);
        let apart = member.host.is_apart(now_us);
        for (key, spec) in self.scenario.keys.iter().enumerate() {
            match spec.on_loss {
                OnStoreLoss::Strict => {
                    let part = share.of_amount(u64::from(WHOLE)) as u32;
                    member.buckets[key].turn(now_us, part);
                }
                OnStoreLoss::Deny => member.closed[key] = apart,
                OnStoreLoss::Hold | OnStoreLoss::Local => {}
            }
        }
    }

    /// Sends a question, unless the network loses it.
    fn ask(&mut self, host: usize, question: Question) {
        if self.members[host].cut && self.scenario.refused {
            self.unanswered(host, &question, false);
            return;
        }
        let message = self.next_message;
        self.next_message += 1;
        let lost = self.members[host].cut || self.random.percent(self.scenario.loss);
        self.messages.insert(
            message,
            Message {
                host,
                sent_us: self.now_us,
                question,
                reply: None,
            },
        );
        if !lost {
            let delay = self.delay();
            self.at(self.now_us + delay, Event::AtStore(message));
        }
    }

    fn delay(&mut self) -> u64 {
        let [low, high] = self.scenario.delay_us;
        self.random.between(low, high)
    }

    fn at_store(&mut self, number: u64) {
        let now_us = STORE_EPOCH_US + self.now_us;
        let Some(message) = self.messages.get_mut(&number) else {
            return;
        };
        let member = &self.members[message.host];
        if member.cut {
            return;
        }
        let now_us = match self.bug {
            Some(Bug::HostsClock) => member.clock(self.now_us),
            _ => now_us,
        };
        message.reply = Some(match &message.question {
            Question::Settle(exchange) => {
                Reply::Settled(self.ledger.settle(now_us, &exchange.entries))
            }
            Question::Beat(beat) => Reply::Fleet(self.ledger.beat(now_us, beat)),
        });
        if !self.random.percent(self.scenario.loss) {
            let delay = self.delay();
            self.at(self.now_us + delay, Event::AtHost(number));
            if self.random.percent(3) {
                // The network delivers it twice; the second one finds nobody waiting.
                self.at(self.now_us + delay * 2, Event::AtHost(number));
            }
        }
    }

    fn at_host(&mut self, number: u64) {
        let Some(message) = self.messages.get(&number) else {
            return;
        };
        if self.members[message.host].cut {
            return;
        }
        let Some(message) = self.messages.remove(&number) else {
            return;
        };
        let member = &mut self.members[message.host];
        if !member.runs {
            return;
        }
        let now_us = member.clock(self.now_us);
        match (message.question, message.reply) {
            (Question::Settle(exchange), Some(Reply::Settled(settled))) => {
                let raises = member.host.answered(now_us, &exchange, &settled);
                for entry in &exchange.entries {
                    let key = entry.key.0 as usize;
                    member.answered[key] = member.buckets[key].spent;
                }
                if self.bug == Some(Bug::SetsInsteadOfRaises) {
                    for (entry, answer) in exchange.entries.iter().zip(&settled.answers) {
                        member.buckets[entry.key.0 as usize].set(now_us, answer.level);
                    }
                }
                for raise in raises {
                    if self.loud {
                        println!(
                            "{:>9.3} ms host {}: {raise:?}",
                            self.now_us as f64 / 1e3,
                            message.host
                        );
                    }
                    member.buckets[raise.id.source as usize].raise(now_us, raise.level);
                }
            }
            (Question::Beat(_), Some(Reply::Fleet(mut fleet))) => {
                if self.bug == Some(Bug::DeafToHot) {
                    fleet.hot.clear();
                }
                member.host.beaten(now_us, &fleet);
            }
            _ => {}
        }
    }

    /// Drops what has waited for two intervals.
    fn give_up(&mut self, host: usize) {
        let late = self.now_us.saturating_sub(2 * self.scenario.interval_us);
        let overdue: Vec<u64> = self
            .messages
            .iter()
            .filter(|(_, message)| message.host == host && message.sent_us < late)
            .map(|(number, _)| *number)
            .collect();
        for number in overdue {
            if let Some(message) = self.messages.remove(&number) {
                self.unanswered(host, &message.question, true);
                if self.bug == Some(Bug::ResendsUnanswered) {
                    self.ask(host, message.question);
                }
            }
        }
    }

    fn unanswered(&mut self, host: usize, question: &Question, sent: bool) {
        let member = &mut self.members[host];
        match question {
            Question::Settle(exchange) => member.host.unanswered(exchange, sent),
            Question::Beat(beat) => member.host.unbeaten(beat),
        }
    }

    fn happens(&mut self, number: usize) {
        let (_, happening) = self.scenario.happenings[number].clone();
        match happening {
            Happening::Emptied => {
                let owed = (0..self.scenario.keys.len())
                    .map(|key| self.most_owed(key))
                    .collect();
                self.emptied = Some((self.now_us, owed));
                self.ledger.flush();
            }
            Happening::Cut(hosts) => hosts.iter().for_each(|host| self.members[*host].cut = true),
            Happening::Healed => self
                .members
                .iter_mut()
                .for_each(|member| member.cut = false),
            Happening::Died(host) => self.members[host].runs = false,
            Happening::Started(host) => {
                let now_us = self.members[host].clock(self.now_us);
                let tuning = tuning(&self.scenario);
                let member = &mut self.members[host];
                member.host = Host::new(host as u64, tuning);
                member.runs = true;
                // What an agent does first: no clock stays slowed that it knows nothing of.
                member
                    .buckets
                    .iter_mut()
                    .for_each(|bucket| bucket.turn(now_us, WHOLE));
            }
            Happening::Left(host) => {
                let leaving = Beat {
                    host: host as u64,
                    leaving: true,
                    ..Beat::default()
                };
                self.ledger.beat(STORE_EPOCH_US + self.now_us, &leaving);
                self.members[host].runs = false;
                // Its connection is in order: nothing comes after the good-bye.
                self.messages.retain(|_, message| message.host != host);
            }
        }
    }

    fn most_owed(&mut self, key: usize) -> u64 {
        let now_us = self.now_us;
        let owed = self
            .members
            .iter_mut()
            .filter(|member| member.host.is_hot(key as u64))
            .map(|member| {
                let now_us = member.clock(now_us);
                member.buckets[key].owed(now_us)
            });
        owed.max().unwrap_or(0)
    }

    /// Two intervals after the store was emptied it knows again what is owed.
    fn refilled(&mut self) -> Result<(), Broken> {
        let Some((at_us, owed)) = self.emptied.clone() else {
            return Ok(());
        };
        let elapsed = self.now_us - at_us;
        let longest = 2 * self.scenario.interval_us + self.scenario.interval_us / 10;
        if elapsed < longest + self.scenario.delay_us[1] {
            return Ok(());
        }
        self.emptied = None;
        for (key, owed) in owed.into_iter().enumerate() {
            let rule = rule(&self.scenario, key);
            let read = Entry::read(rule.key, rule.quota);
            let now_us = STORE_EPOCH_US + self.now_us;
            let level = self.ledger.settle(now_us, &[read]).answers[0].level;
            let drained = rule.quota.in_time(elapsed * 101 / 100);
            if level + drained + ONE < owed {
                return Err(Broken::NotRefilled(key, level / ONE, owed / ONE));
            }
        }
        Ok(())
    }

    /// Whether every clock runs at its whole rate again.
    pub(crate) fn all_whole(&self) -> bool {
        let keys = self.scenario.keys.len();
        self.members
            .iter()
            .filter(|member| member.runs)
            .all(|member| {
                let held = (0..keys).filter(|key| member.scale(*key) != WHOLE);
                held.count() == 0
            })
    }

    /// Whether any host that runs believes to be alone.
    pub(crate) fn any_apart(&self) -> bool {
        self.members
            .iter()
            .any(|member| member.runs && member.host.is_apart(member.clock(self.now_us)))
    }

    /// The store's time now.
    pub(crate) fn store_us(&self) -> u64 {
        STORE_EPOCH_US + self.now_us
    }
}
