//! The terminal while a table is drawn again and again.
//!
//! What lives here: the alternate screen, and giving the terminal back on every way out: Ctrl-C, a
//! signal, an error, a panic. What does not: what is drawn (`view`).

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError, TryLockError};

use crate::failure::{Class, Failure};

/// The other screen, and no cursor.
const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
/// The cursor, and the screen that was there before.
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// Whether we are on the other screen. Whoever draws holds it, so that nothing is drawn after the end.
static ENTERED: Mutex<bool> = Mutex::new(false);

/// The other screen, until it is dropped.
pub(super) struct Screen(());

impl Screen {
    /// Goes there, and sees to it that the way back is found.
    pub(super) fn enter() -> Result<Self, Failure> {
        // On a thread of its own: the process ends there, wherever the other one is waiting.
        let ended = ctrlc::set_handler(|| {
            // Kept to the end, so that nothing is drawn after it.
            let mut entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
            leave(&mut entered);
            std::process::exit(0);
        });
        ended.map_err(|error| Failure::fault(format!("cannot wait for Ctrl-C: {error}")))?;
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Before the message, which would go with the other screen. Whoever panics may be who draws,
            // and then this would wait for itself.
            match ENTERED.try_lock() {
                Ok(mut entered) => leave(&mut entered),
                Err(TryLockError::Poisoned(poisoned)) => leave(&mut poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => leave(&mut true),
            }
            usual(panic);
        }));
        let mut entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
        write(ENTER).map_err(gone)?;
        *entered = true;
        Ok(Screen(()))
    }

    /// Draws these lines over what is there.
    pub(super) fn draw(&self, lines: &[String]) -> Result<(), Failure> {
        let mut frame = String::from("\u{1b}[H");
        for (at, line) in lines.iter().enumerate() {
            let next = if at == 0 { "" } else { "\n" };
            // What was there goes before, not after: behind a line that is as wide as the terminal, it
            // would take the last character along. With the last line goes all that is below.
            let clear = if at + 1 == lines.len() { "J" } else { "K" };
            frame.extend([next, "\u{1b}[", clear, line]);
        }
        let entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if *entered {
            write(&frame).map_err(gone)?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave(&mut ENTERED.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Back, if we are there. A terminal that has gone needs nothing.
fn leave(entered: &mut bool) {
    if std::mem::take(entered) {
        let _ = write(LEAVE);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn gone(error: io::Error) -> Failure {
    Failure {
        class: Class::Unreadable,
        kind: "io",
        message: format!("cannot write to the terminal: {error}"),
    }
}
