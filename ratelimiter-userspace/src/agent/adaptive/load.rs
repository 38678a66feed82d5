//! This host's load: how busy its CPUs are, and how long tasks wait for them (PSI), where the
//! kernel says so.

/// A reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Load {
    /// Share of CPU time that was not idle since the reading before, 0..=1.
    pub(super) cpu: Option<f64>,
    /// Share of the last ten seconds in which some task waited for a CPU, 0..=1.
    pub(super) pressure: Option<f64>,
}

impl Load {
    /// The larger of the two; `None` where neither is known.
    pub(super) fn worst(self) -> Option<f64> {
        match (self.cpu, self.pressure) {
            (Some(cpu), Some(pressure)) => Some(cpu.max(pressure)),
            (cpu, pressure) => cpu.or(pressure),
        }
    }
}

/// Reads the load, each time since the last.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// All jiffies, and idle ones.
    before: Option<[u64; 2]>,
}

impl Meter {
    /// Reads it now.
    pub(super) fn read(&mut self) -> Load {
        let file = |path| std::fs::read_to_string(path).ok();
        self.of(
            file("/proc/stat").as_deref(),
            file("/proc/pressure/cpu").as_deref(),
        )
    }

    fn of(&mut self, stat: Option<&str>, pressure: Option<&str>) -> Load {
        let now = stat.and_then(jiffies);
        let before = std::mem::replace(&mut self.before, now);
        let cpu = now.zip(before).and_then(|([all, idle], [was, idle_was])| {
            let passed = all.checked_sub(was).filter(|passed| *passed > 0)?;
            let idle = idle.saturating_sub(idle_was).min(passed);
            Some(1.0 - idle as f64 / passed as f64)
        });
        Load {
            cpu,
            pressure: pressure.and_then(some_avg10),
        }
    }
}

/// All jiffies of all CPUs, and idle ones (waiting for a disk included).
fn jiffies(stat: &str) -> Option<[u64; 2]> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest time is part of user time.
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .take(8)
        .map_while(|field| field.parse().ok())
        .collect();
    let idle = fields.get(3)? + fields.get(4)?;
    Some([fields.iter().sum(), idle])
}

fn some_avg10(pressure: &str) -> Option<f64> {
    let line = pressure.lines().find(|line| line.starts_with("some "))?;
    let field = line
        .split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("avg10="))?;
    let share = field.parse::<f64>().ok()? / 100.0;
    (0.0..=1.0).contains(&share).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let mut meter = Meter::default();
        let stat = |user: u64, idle: u64| format!("cpu  {user} 0 10 {idle} 5 0 0 0 0 0\ncpu0 1\n");
        let psi = "some avg10=37.50 avg60=1.00 avg300=0.50 total=1\nfull avg10=0.00\n";
        let first = meter.of(Some(&stat(100, 100)), Some(psi));
        assert_eq!((first.cpu, first.pressure), (None, Some(0.375)));
        let second = meter.of(Some(&stat(190, 110)), Some(psi));
        assert!((second.cpu.unwrap() - 0.9).abs() < 1e-9);
        assert!((second.worst().unwrap() - 0.9).abs() < 1e-9);
    }

    #[test]
    fn garbage_is_no_load() {
        let mut meter = Meter::default();
        for text in [
            "",
            "cpu",
            "cpu  a b",
            "some avg10=x",
            "some avg10=nan",
            "some avg10=-3",
        ] {
            assert_eq!(meter.of(Some(text), Some(text)), Load::default(), "{text}");
        }
        assert_eq!(meter.of(None, None).worst(), None);
    }

    #[test]
    fn this_machine_says_something() {
        let mut meter = Meter::default();
        meter.read();
        let begin = crate::clock::instant();
        while begin.elapsed().as_millis() < 50 {
            std::hint::spin_loop();
        }
        let load = meter.read();
        assert!(load.cpu.unwrap() > 0.0, "{load:?}");
    }
}
