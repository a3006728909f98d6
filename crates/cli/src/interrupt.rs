//! Ctrl-C.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C (or a request to terminate) asks the program to stop at the next good
/// moment; a second one ends it at once.
pub fn install() {
    let result = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            eprintln!("\ninterrupted again: ending at once");
            process::exit(130);
        }
        eprintln!("\ninterrupted: saving what there is (press Ctrl-C again to end at once)");
    });
    if let Err(error) = result {
        eprintln!("warning: Ctrl-C cannot be handled: {error}");
    }
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    STOP.load(Ordering::SeqCst)
}
