//! Lets ThreadSanitizer see the last drop of an `Arc`: linked in place of its own `fetch_sub`
//! (`-Wl,--wrap`, see `.ci/tsan`).
//!
//! `Arc` gives its shares back by `fetch_sub(Release)`, and only the last one fences. ThreadSanitizer
//! knows no fences, so it reports the free. Here every `fetch_sub(Release)` acquires as well. The
//! library's own counts do not come through here (`sync/seen.rs`).

const ACQ_REL: i32 = 4;
const RELEASE: i32 = 3;

unsafe extern "C" {
    fn __real___tsan_atomic64_fetch_sub(at: *mut u64, value: u64, order: i32) -> u64;
}

/// # Safety
/// As the one that it wraps: `at` is an atomic.
#[unsafe(no_mangle)]
unsafe extern "C" fn __wrap___tsan_atomic64_fetch_sub(at: *mut u64, value: u64, order: i32) -> u64 {
    let order = if order == RELEASE { ACQ_REL } else { order };
    // SAFETY: the caller's; a stronger order.
    unsafe { __real___tsan_atomic64_fetch_sub(at, value, order) }
}
