//! Another version of the agent: the same but for one number in its kernel program.
//!
//! Building the agent twice takes minutes. What makes an upgrade is that the program is another one:
//! other instructions, another tag. So a copy of the binary reads the clock every 16 packets.

use std::fs;
use std::mem::offset_of;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ratelimiter_common::abi::counters::CpuState;

use crate::OrFail as _;
use crate::agent::binary;

/// Packets per reading of the clock, as it is stored: less the one that read it.
const AS_BUILT: u8 = 63;
const OTHERWISE: u8 = 15;

/// `BPF_ALU64 | BPF_MOV | BPF_K` and `BPF_STX | BPF_MEM | BPF_W`.
const MOVE: u8 = 0xb7;
const STORE: u8 = 0x63;

/// Writes the other version to `directory`; returns where it is.
#[must_use]
#[track_caller]
pub fn other_version(directory: &Path) -> PathBuf {
    let mut bytes = fs::read(binary()).or_fail("read the agent's binary");
    let offset = offset_of!(CpuState, clock_left) as u8;
    let mut changed = 0;
    for at in 0..bytes.len().saturating_sub(16) {
        let [
            code,
            to,
            0,
            0,
            AS_BUILT,
            0,
            0,
            0,
            store,
            from,
            low,
            0,
            0,
            0,
            0,
            0,
        ] = bytes[at..at + 16]
        else {
            continue;
        };
        // "rX = 63", "*(u32 *)(rY + clock_left) = rX".
        if code == MOVE && store == STORE && low == offset && to == from >> 4 {
            bytes[at + 4] = OTHERWISE;
            changed += 1;
        }
    }
    assert!(
        changed > 0,
        "no program that reads the clock every 64 packets"
    );
    let path = directory.join("ratelimiter-other");
    fs::write(&path, bytes).or_fail("write the other version");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).or_fail("make it executable");
    path
}
