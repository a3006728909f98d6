//! Ctrl-C and other requests to end.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::output::is_silent;

static STOP: AtomicBool = AtomicBool::new(false);
/// What is done before the program ends at once.
static BEFORE_EXIT: Mutex<Option<fn()>> = Mutex::new(None);

/// Has `finish` called before the program ends at once.
#[cfg(feature = "tui")]
pub fn before_exit(finish: fn()) {
    *BEFORE_EXIT.lock().unwrap_or_else(PoisonError::into_inner) = Some(finish);
}

/// Asks to stop as Ctrl-C does; whether that was asked for before.
#[cfg(feature = "tui")]
pub fn request() -> bool {
    STOP.swap(true, Ordering::SeqCst)
}

/// From now on Ctrl-C (or a request to terminate) asks the program to stop at the next good moment, as
/// `promise` says; a second one ends it at once, and so does the first where nothing is promised.
pub fn install(promise: Option<&'static str>) {
    let result = ctrlc::set_handler(move || {
        let again = STOP.swap(true, Ordering::SeqCst);
        match promise {
            Some(_) if !again && is_silent() => {}
            Some(promise) if !again => {
                eprintln!("\ninterrupted: {promise} (press Ctrl-C again to end at once)");
            }
            _ => {
                let finish = *BEFORE_EXIT.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(finish) = finish {
                    finish();
                }
                eprintln!(
                    "\ninterrupted{}",
                    if again { " again: ending at once" } else { "" }
                );
                process::exit(130);
            }
        }
    });
    if let Err(error) = result {
        warning!("Ctrl-C cannot be handled: {error}");
    }
    if promise.is_some() {
        stop_on_user_signal();
    }
}

/// SIGUSR1 asks to stop as a first Ctrl-C does: launchers of several processes hand it on, where they end the
/// processes soon after what ends themselves, and batch systems send it some time before the end.
#[allow(unsafe_code, reason = "the standard library has no word for signals")]
fn stop_on_user_signal() {
    #[cfg(unix)]
    {
        extern "C" fn stop(_: libc::c_int) {
            STOP.store(true, Ordering::SeqCst);
        }
        let stop: extern "C" fn(libc::c_int) = stop;
        // SAFETY: the handler only sets a flag, which it may at any time.
        unsafe { libc::signal(libc::SIGUSR1, stop as libc::sighandler_t) };
    }
}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    STOP.load(Ordering::SeqCst)
}

/// A write beyond the limit on the size of files (`ulimit -f`) then fails as one to a full disk does,
/// with an error that is reported, instead of ending the program.
#[allow(unsafe_code, reason = "the standard library has no word for signals")]
pub fn survive_file_size_limit() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal runs no code.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN)
    };
}
