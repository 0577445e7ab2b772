//! However the tour ends, nothing of it stays.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::lab::Lab;

/// The tour showed everything, and only stays: Ctrl-C is its ordinary end.
static STAYS: AtomicBool = AtomicBool::new(false);

/// Exit code of a tour that was interrupted: 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: i32 = 128 + libc::SIGINT;

/// From now on a signal that ends the tour removes its lab first. (After a SIGKILL the next tour does.)
pub(super) fn leave_nothing_behind(lab: &Lab) -> Result<()> {
    let id = lab.id();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("listening for signals")?;
    let mut signals = {
        let _inside = runtime.enter();
        [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ]
        .map(signal)
        .into_iter()
        .collect::<std::io::Result<Vec<Signal>>>()
        .context("listening for signals")?
    };
    thread::Builder::new()
        .name("ending".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let any = signals.iter_mut().map(|s| Box::pin(s.recv()));
                futures::future::select_all(any).await;
            });
            println!();
            let removed = Lab::discard(&id);
            if let Err(error) = &removed {
                eprintln!("tour: something stays behind, the next tour tries again: {error:#}");
            }
            let stays = STAYS.load(Ordering::Relaxed) && removed.is_ok();
            std::process::exit(if stays { 0 } else { INTERRUPTED });
        })
        .context("listening for signals")?;
    Ok(())
}

/// The tour is over, and stays.
pub(super) fn stay() {
    STAYS.store(true, Ordering::Relaxed);
}
