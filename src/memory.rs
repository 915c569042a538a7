//! What the process asks of its allocator.
//!
//! Geo data and a new atlas are built in blocks of megabytes that are given back a second later. The C library's allocator learns from the
//! first of them to take such blocks from its heap, where they leave holes that never go back to the system: 109 MiB resident
//! with the builtin data and six regions, 57 MiB without that habit (measured, x86-64, glibc 2.36). No request allocates in the long
//! run, so a faster allocator would gain nothing.
//!
//! Must not know what the memory is for.

#![allow(
    unsafe_code,
    reason = "one call of the C library, which no crate wraps; it halves the memory of an idle process"
)]

/// Blocks of this many bytes and more go back to the system when they are freed. The C library's own first threshold.
const LARGE: i32 = 128 << 10;

/// Large blocks go back to the system when they are freed. To be called before there are other threads. Does nothing where the C library is not
/// glibc.
pub fn give_large_blocks_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes two numbers and changes how later allocations are made; no other thread allocates meanwhile. Should it refuse,
    // everything stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}
