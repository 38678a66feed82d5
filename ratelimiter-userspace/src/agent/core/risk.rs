//! Whether a change is risky: it would hit whoever makes it, or most of those who send now.

use std::net::IpAddr;
use std::sync::Arc;

use super::Core;
use super::protect::Protected;
use crate::admin::{Caller, Result};
use crate::agent::estimate::{Harm, Treatment, harm, treatment};
use crate::policy::model::{Document, Mode};
use crate::policy::prefixes::unmapped;
use crate::policy::set::Compiled;

/// Why a change is risky, as part of a sentence.
pub(super) type Risk = String;

impl Core {
    /// Why the change to `edited`, compiled as `next`, is risky; `None` if it is not. In shadow
    /// nothing is dropped, so nothing is risky.
    pub(super) fn risk(
        &self,
        edited: &Document,
        next: &Compiled,
        caller: &Caller,
    ) -> Result<Option<Risk>> {
        if self.inputs.mode != Mode::Enforce {
            return Ok(None);
        }
        let own = caller.addresses();
        // Whoever is let in for a while will not be when it is over: judged as if it were.
        let found = if self.protects(&own) {
            let none = Protected::new();
            let now = self.compile_with(&self.stored, &self.fixed, self.inputs.mode, &none)?;
            let next = self.compile_with(edited, &self.fixed, self.inputs.mode, &none)?;
            own_risk(&now.1, &next.1, &own)
        } else {
            own_risk(&self.compiled, next, &own)
        };
        if found.is_some() {
            return Ok(found);
        }
        let figured = self.shared.figured.load();
        let talkers = Arc::clone(&figured.talkers);
        let harm = harm(&self.compiled, next, &talkers, figured.observed_s);
        Ok(crowd_risk(harm, self.risky_percent))
    }
}

/// What would become of the caller's own addresses, if that is worse than it is.
fn own_risk(now: &Compiled, next: &Compiled, own: &[IpAddr]) -> Option<Risk> {
    own.iter().find_map(|address| {
        let address = unmapped(*address);
        let (now, next) = (treatment(now, address), treatment(next, address));
        if now == Treatment::Blocked || next == Treatment::Allowed {
            return None;
        }
        let how = match (now, next) {
            (_, Treatment::Blocked) => "blocked",
            // Nobody reaches loopback through an interface that a limit would cut off.
            _ if address.is_loopback() => return None,
            (Treatment::Allowed, _) => "no longer allow-listed",
            _ if next.is_tighter_than(&now) => "limited more tightly",
            _ => return None,
        };
        Some(format!("your own address `{address}` would be {how}"))
    })
}

fn crowd_risk(harm: Harm, risky_percent: u8) -> Option<Risk> {
    let Harm { hit, active } = harm;
    (active > 0 && hit * 100 > active * u64::from(risky_percent)).then(|| {
        format!("{hit} of {active} active sources would lose packets they do not lose now")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_those_who_send_is_more_than_the_share_set() {
        let risk = |hit, active, percent| crowd_risk(Harm { hit, active }, percent);
        assert_eq!(risk(0, 0, 50), None);
        assert_eq!(risk(1, 2, 50), None);
        assert_eq!(risk(2, 2, 100), None);
        let found = risk(2, 3, 50).unwrap();
        assert_eq!(
            found,
            "2 of 3 active sources would lose packets they do not lose now"
        );
    }
}
