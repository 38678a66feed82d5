//! Takes the terminal and gives it back: at the end, after a panic, after a signal.

use std::io;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent};
use tokio::sync::mpsc;

/// Key presses that may wait.
const KEYS: usize = 64;

/// The terminal in raw mode on its alternate screen. It is as before when this is dropped, and when
/// the process panics.
#[derive(Debug)]
pub struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal.
    pub fn enter() -> io::Result<Self> {
        // Sets the hook for panics too.
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                // Half of it may be done.
                drop(ratatui::try_restore());
                Err(error)
            }
        }
    }

    /// What is drawn on.
    pub fn terminal(&mut self) -> &mut DefaultTerminal {
        &mut self.terminal
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The alternate screen hides the cursor.
        drop(self.terminal.show_cursor());
        ratatui::restore();
    }
}

/// What the terminal says.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// A key.
    Key(KeyEvent),
    /// The window has another size.
    Resized,
    /// It is gone.
    Gone,
}

/// Reads keys on a thread of its own, which ends with the process: a read of a terminal cannot be
/// broken off.
pub fn keys() -> io::Result<mpsc::Receiver<Said>> {
    let (put, keys) = mpsc::channel(KEYS);
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(move || {
            loop {
                let said = match event::read() {
                    Ok(Event::Key(key)) => Said::Key(key),
                    Ok(Event::Resize(..)) => Said::Resized,
                    Ok(_) => continue,
                    Err(_) => Said::Gone,
                };
                let gone = matches!(said, Said::Gone);
                if put.blocking_send(said).is_err() || gone {
                    return;
                }
            }
        })?;
    Ok(keys)
}
