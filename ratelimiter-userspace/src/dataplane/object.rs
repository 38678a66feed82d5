//! The compiled kernel program, embedded. Nothing else in the crate names the object.

/// Aligned as the ELF reader wants it.
#[repr(C, align(32))]
struct Aligned<B: ?Sized>(B);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("RATELIMITER_OBJECT")));
static ALIGNED_BENCH: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("RATELIMITER_BENCH_OBJECT")));

/// The object with the programs `ratelimiter` and `merge`; empty where the agent was built without
/// a BPF toolchain.
pub static OBJECT: &[u8] = &ALIGNED.0;

/// The object of the kernel benchmark; linked into nothing but that benchmark.
pub static BENCH_OBJECT: &[u8] = &ALIGNED_BENCH.0;

/// The agent was built without a BPF toolchain, so there is nothing to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this binary was built without the kernel program, because no BPF toolchain was installed; \
     run `cargo xtask setup`, then build again"
)]
pub struct ObjectMissing;

/// Returns the kernel object, or the reason why there is none.
pub fn object() -> Result<&'static [u8], ObjectMissing> {
    present(OBJECT)
}

/// Returns the benchmark's object, or the reason why there is none.
pub fn bench_object() -> Result<&'static [u8], ObjectMissing> {
    present(BENCH_OBJECT)
}

fn present(object: &'static [u8]) -> Result<&'static [u8], ObjectMissing> {
    if object.is_empty() {
        Err(ObjectMissing)
    } else {
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_an_empty_object_and_says_what_to_run() {
        assert_eq!(present(&[]), Err(ObjectMissing));
        assert!(ObjectMissing.to_string().contains("`cargo xtask setup`"));
    }

    #[test]
    fn embeds_an_elf_object_or_nothing() {
        assert!(OBJECT.is_empty() || OBJECT.starts_with(b"\x7fELF"));
    }
}
