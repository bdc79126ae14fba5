//! A table that is drawn again and again.
//!
//! What lives here: when to ask, what to show while nobody answers. What does not: the page (`view`), the
//! terminal (`screen`).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use console::Term;

use super::document::Registry;
use super::fetch::Server;
use super::screen::Screen;
use super::view::{self, Size};
use crate::failure::Failure;
use crate::paint::Paint;
use crate::sizes::seconds;

/// Shows what `server` holds until Ctrl-C, which ends the process. Returns why it cannot go on: the
/// terminal, never the server.
pub(super) fn run(server: &Server, interval: Duration, paint: Paint) -> Failure {
    match forever(server, interval, paint) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

/// There is no value of it.
enum Never {}

/// What was seen so far.
#[derive(Default)]
struct Seen {
    last: Option<Registry>,
    trouble: Option<Trouble>,
}

/// The server does not answer.
struct Trouble {
    since: Instant,
    /// The same, as clocks have it.
    clock: String,
    message: String,
}

fn forever(server: &Server, interval: Duration, paint: Paint) -> Result<Never, Failure> {
    let screen = Screen::enter()?;
    let mut seen = Seen::default();
    screen.draw(&[format!("asking {} ...", server.url())])?;
    loop {
        let started = Instant::now();
        seen.take(server.ask(), started);
        screen.draw(&page(server, &seen, paint, interval))?;
        // Ctrl-C is heard on another thread.
        std::thread::sleep(interval.saturating_sub(started.elapsed()));
    }
}

impl Seen {
    fn take(&mut self, answer: Result<Registry, Failure>, asked: Instant) {
        match answer {
            Ok(registry) => {
                self.last = Some(registry);
                self.trouble = None;
            }
            Err(failure) => {
                let before = self.trouble.take();
                self.trouble = Some(Trouble {
                    since: before.as_ref().map_or(asked, |before| before.since),
                    clock: before.map_or_else(clock, |before| before.clock),
                    message: failure.message,
                });
            }
        }
    }
}

fn page(server: &Server, seen: &Seen, paint: Paint, interval: Duration) -> Vec<String> {
    let (rows, columns) = Term::stdout().size_checked().unwrap_or((24, 80));
    let (rows, columns) = (usize::from(rows), usize::from(columns));
    let mut lines = Vec::new();
    if let Some(trouble) = &seen.trouble {
        let lasted = trouble.since.elapsed().as_secs();
        let since = format!("since {} UTC ({lasted} s)", trouble.clock);
        lines.push(format!("{} {since}", paint.bad("no answer")));
        lines.push(trouble.message.clone());
        if seen.last.is_some() {
            lines.push("What it said last:".to_owned());
        }
    }
    let footer = format!("every {}; Ctrl-C ends", seconds(interval.as_secs_f64()));
    if let Some(registry) = &seen.last {
        let size = Size {
            columns,
            rows: Some(rows.saturating_sub(lines.len() + 1)),
        };
        lines.extend(view::lines(server.url(), registry, paint, size));
    }
    lines.truncate(rows.saturating_sub(1));
    lines.push(footer);
    let cut = |line: &String| console::truncate_str(line, columns, "…").into_owned();
    lines.iter().map(cut).collect()
}

/// The time of day in UTC.
fn clock() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let of_day = now.map_or(0, |now| now.as_secs() % 86_400);
    let (hours, minutes) = (of_day / 3600, of_day / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Class;

    fn failed(message: &str) -> Result<Registry, Failure> {
        Err(Failure {
            class: Class::Unreadable,
            kind: "unreachable",
            message: message.to_owned(),
        })
    }

    #[test]
    fn trouble_has_one_beginning_and_the_last_answer_stays() {
        let mut seen = Seen::default();
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        seen.take(Ok(Registry::default()), start);
        seen.take(failed("first"), later(1));
        seen.take(failed("second"), later(2));
        let trouble = seen.trouble.as_ref().unwrap();
        assert_eq!((trouble.since, &*trouble.message), (later(1), "second"));
        assert!(seen.last.is_some());
        seen.take(Ok(Registry::default()), later(3));
        assert!(seen.trouble.is_none());
    }
}
