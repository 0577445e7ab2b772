//! Memory of the process that was needed once: given back to the kernel.
//!
//! A start holds for a moment the whole delta and a plan that writes everything. The allocator keeps what was freed for the next time, and
//! there is none: nothing else that the agent does is as large.

/// Gives free memory back to the kernel, as far as whole pages are free. It takes some milliseconds: not for every change.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer, and may be called by any thread at any time (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}
