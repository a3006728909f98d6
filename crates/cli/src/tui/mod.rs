//! A dashboard in the terminal while a network is trained.

mod state;
mod view;

use std::io::{IsTerminal, Stderr, stderr, stdin};
use std::panic;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use halfseg_eval::Scores;
use halfseg_train::{Observer, Started, Step, Timing};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use self::state::State;
use crate::progress::words;
use crate::{interrupt, output};

/// How often the screen is drawn, and keys are looked for.
const EVERY: Duration = Duration::from_millis(200);

/// Whether the terminal is the dashboard's.
static ACTIVE: AtomicBool = AtomicBool::new(false);
/// Held while something is drawn.
static DRAWING: Mutex<()> = Mutex::new(());

/// The dashboard of a run. The terminal is as it was once it is dropped, and on a panic or when the program is told to
/// end at once.
pub struct Dashboard {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Dashboard {
    /// Takes the terminal.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub fn open() -> Result<Self, String> {
        if !stderr().is_terminal() || !stdin().is_terminal() {
            return Err("standard input and standard error are no terminal".into());
        }
        if std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb") {
            return Err("the terminal cannot place text (TERM)".into());
        }
        let failed = |error: std::io::Error| format!("the terminal cannot be used: {error}");
        enable_raw_mode().map_err(failed)?;
        ACTIVE.store(true, Ordering::SeqCst);
        output::capture();
        restore_on_panic();
        interrupt::before_exit(restore);
        let terminal = execute!(stderr(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stderr())));
        let terminal = match terminal {
            Ok(terminal) => terminal,
            Err(error) => {
                restore();
                return Err(failed(error));
            }
        };
        let state = Arc::new(Mutex::new(State::default()));
        let shown = Arc::clone(&state);
        let thread = thread::Builder::new()
            .name("dashboard".into())
            .spawn(move || show(terminal, &shown));
        match thread {
            Ok(thread) => Ok(Self {
                state,
                thread: Some(thread),
            }),
            Err(error) => {
                restore();
                Err(failed(error))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        restore();
        if let Some(thread) = self.thread.take() {
            // It ends at once, or has told why it could not go on.
            let _ = thread.join();
        }
    }
}

/// A thread that panicked has left nothing that is half done.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the terminal back, once, and then says what was said in the meantime.
fn restore() {
    // What is being drawn comes first; a thread that panicked while it drew never ends.
    let mut drawn = None;
    for _ in 0..50 {
        match DRAWING.try_lock() {
            Ok(guard) => drawn = Some(guard),
            Err(TryLockError::Poisoned(guard)) => drawn = Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
        }
        break;
    }
    if ACTIVE.swap(false, Ordering::SeqCst) {
        // A terminal that is gone needs nothing.
        let _ = execute!(stderr(), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
        output::release();
    }
    drop(drawn);
}

/// Before the message of a panic is written.
fn restore_on_panic() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let then = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            then(info);
        }));
    });
}

/// Draws until the terminal is given back, in the room that there is each time, and hears keys.
fn show(mut terminal: Terminal<CrosstermBackend<Stderr>>, state: &Mutex<State>) {
    loop {
        {
            let _drawing = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
            if !ACTIVE.load(Ordering::SeqCst) {
                return;
            }
            let mut state = locked(state);
            state.stopping = interrupt::requested();
            for line in output::captured() {
                state.say(line);
            }
            if terminal.draw(|frame| view::draw(frame, &state)).is_err() {
                // Nobody sees it any more; the run goes on.
                return;
            }
        }
        match event::poll(EVERY).and_then(|there| there.then(event::read).transpose()) {
            Ok(Some(Event::Key(key))) if asks_to_stop(&key) && interrupt::request() => {
                restore();
                process::exit(130);
            }
            Ok(_) => {}
            // Keys cannot be heard: the screen goes on, and so do signals.
            Err(_) => thread::sleep(EVERY),
        }
    }
}

fn asks_to_stop(key: &KeyEvent) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') => !control,
            KeyCode::Char('c') => control,
            _ => false,
        }
}

impl Observer for Dashboard {
    fn started(&mut self, run: &Started<'_>) {
        for note in run.notes {
            warning!("{note}");
        }
        if let Some(line) = words::loaded(run) {
            message!("{line}");
        }
        self.state().started(run);
    }

    fn stepped(&mut self, step: &Step, timing: &Timing) {
        if let Some(line) = words::skipped(step) {
            message!("{line}");
        }
        self.state().stepped(step, timing);
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        self.state().evaluating = Some((done, total));
    }

    fn not_finite(&mut self, name: &str, pixels: usize) {
        warning!("{}", words::not_finite(name, pixels));
    }

    fn evaluated(&mut self, iteration: u64, scores: &Scores, best: bool) {
        message!("{}", words::evaluated(iteration, scores, best));
        self.state().evaluated(iteration, scores, best);
    }

    fn evaluated_plain(&mut self, iteration: u64, scores: &Scores) {
        message!("{}", words::evaluated_plain(iteration, scores));
    }

    fn saved(&mut self, path: &Path) {
        message!("saved {}", path.display());
    }

    fn stop(&mut self) -> bool {
        interrupt::requested()
    }
}
