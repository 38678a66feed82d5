//! The product's parser against a table written by hand and against a second parser.
//! Needs no root.

use ratelimiter_common::parse::{Address, Class, classify, parse, plain4, plain6};
use ratelimiter_common::source;
use tests::frames;
use tests::reference::{Bug, Verdict, judge};

/// /64 keys.
const MASK: u64 = u64::MAX;

/// The product's answer in the reference's words; checks the key on the way.
fn product(frame: &[u8]) -> Verdict {
    // Whoever takes the short way arrives at the same place.
    for short in [plain4(&frame), plain6(&frame)].into_iter().flatten() {
        assert_eq!(short, parse(&frame), "{frame:02x?}");
    }
    match classify(frame, MASK) {
        Class::NonIp => Verdict::NonIp,
        Class::Control => Verdict::Control,
        Class::Malformed => Verdict::Malformed,
        Class::Packet(packet) => match packet.address {
            Address::V4(address) => {
                assert_eq!(packet.key, u64::from(address));
                Verdict::V4(address.into(), packet.opens_connection)
            }
            Address::V6(high, low) => {
                assert_eq!(Some(packet.key), source::v6(high, low, MASK));
                let address = (u128::from(high) << 64) | u128::from(low);
                Verdict::V6(address.into(), packet.opens_connection)
            }
        },
    }
}

#[test]
fn every_fixture_is_classified_as_written() {
    let table = frames::all();
    assert!(table.len() >= 300, "only {} fixtures", table.len());
    let mut names = std::collections::HashSet::new();
    for fixture in &table {
        assert!(
            names.insert(&fixture.name),
            "two fixtures called `{}`",
            fixture.name
        );
        assert_eq!(
            product(&fixture.frame),
            fixture.expected,
            "{}: {:02x?}",
            fixture.name,
            fixture.frame
        );
        assert_eq!(
            judge(&fixture.frame, None),
            fixture.expected,
            "reference: {}",
            fixture.name
        );
    }
    println!("{} fixtures", table.len());
}

#[test]
fn common_packets_take_the_short_way() {
    let short = |frame: &[u8]| plain4(&frame).is_some() || plain6(&frame).is_some();
    let taken = frames::all().iter().filter(|f| short(&f.frame)).count();
    println!("{taken} fixtures take the short way");
    assert!(taken >= 20, "{taken}");
    let packet = tests::packet::Packet::eth().ipv4("192.0.2.1", "198.51.100.1");
    // 60 bytes: no shorter frame is on any wire.
    assert!(short(&packet.udp(1234, 80).zeros(18).build()));
}

#[test]
fn runts_are_malformed() {
    for length in 0..14 {
        assert_eq!(product(&[0xff; 14][..length]), Verdict::Malformed);
    }
}

/// xorshift64*, so that a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

/// A frame of the corpus with a few bytes changed, cut or lengthened: mostly near headers, mostly
/// to values that mean something.
fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
    const TELLING: [u8; 24] = [
        0, 1, 2, 4, 5, 6, 8, 17, 20, 40, 43, 44, 50, 51, 58, 60, 67, 68, 0x45, 0x60, 0x81, 0x86,
        0xdd, 0xff,
    ];
    for _ in 0..=random.below(4) {
        match random.below(8) {
            0 => {
                let length = random.below(frame.len() + 1);
                frame.truncate(length);
            }
            1 => frame.resize(
                (frame.len() + random.below(24)).min(300),
                random.next() as u8,
            ),
            2 => {
                let at = random.below(frame.len() + 1);
                let byte = random.next() as u8;
                frame.insert(at, byte);
            }
            3..=5 if !frame.is_empty() => {
                let near = frame.len().min(80);
                let at = random.below(near);
                frame[at] = TELLING[random.below(TELLING.len())];
            }
            _ if !frame.is_empty() => {
                let at = random.below(frame.len());
                frame[at] ^= 1 << random.below(8);
            }
            _ => {}
        }
    }
}

/// Mutated frames, until `visit` returns false or `count` are through. Returns how many were.
fn fuzz(count: u64, seed: u64, mut visit: impl FnMut(&[u8]) -> bool) -> u64 {
    let corpus = frames::all();
    let mut random = Random(seed);
    let mut frame = Vec::with_capacity(512);
    for done in 0..count {
        frame.clear();
        frame.extend_from_slice(&corpus[random.below(corpus.len())].frame);
        mutate(&mut frame, &mut random);
        if !visit(&frame) {
            return done;
        }
    }
    count
}

/// R14: 10^7 frames; fewer under an unoptimised build would not be the same test.
#[test]
fn parsers_agree_on_ten_million_mutated_frames() {
    let count = fuzz(10_000_000, 0x9e37_79b9_7f4a_7c15, |frame| {
        assert_eq!(product(frame), judge(frame, None), "{frame:02x?}");
        true
    });
    println!("{count} frames, 0 disagreements");
}

/// R14: the fuzzer itself is proven.
#[test]
fn every_planted_parser_bug_is_found_within_a_million_frames() {
    for bug in Bug::ALL {
        let found = fuzz(1_000_000, 7, |frame| {
            product(frame) == judge(frame, Some(bug))
        });
        assert!(found < 1_000_000, "{bug:?} was not found");
        println!("{bug:?} found after {found} frames");
    }
}
