//! A registry as a page for people.
//!
//! What lives here: which lines, in which order, cut to what room there is. What does not: drawing them
//! again (`live`), the terminal (`screen`).

use super::document::{Going, Holder, Ledger, Registry, Serving, Set, Stats};
use crate::escape::clean_up_to;
use crate::paint::Paint;
use crate::sizes::{exact, human, seconds};
use crate::table::{Align, Table, count, field};

/// Names have no bound here. The library's have one of 512 bytes, and nobody reads so much of one.
const NAME: usize = 64;
/// Holders of a generation that are named.
const HOLDERS: usize = 3;
/// Of a digest, or of a revision. Twelve digits of BLAKE3 are told apart.
const IDENTITY: usize = 20;

/// What room there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) columns: usize,
    /// `None`: as many as it takes.
    pub(super) rows: Option<usize>,
}

impl Size {
    /// Of a page that is not a terminal's.
    pub(super) const PAGE: Size = Size {
        columns: 160,
        rows: None,
    };

    /// Both, where there is room for both beside names.
    fn bytes(self, bytes: u64) -> String {
        if self.is_wide() {
            exact(bytes)
        } else {
            human(bytes)
        }
    }

    /// How long a name of a set may be.
    fn name(self) -> usize {
        let beside = if self.is_wide() { 92 } else { 76 };
        self.columns.saturating_sub(beside).clamp(12, NAME)
    }

    fn is_wide(self) -> bool {
        self.columns >= 120
    }
}

pub(super) fn lines(url: &str, registry: &Registry, paint: Paint, size: Size) -> Vec<String> {
    let model = registry.model.as_deref().map(name);
    let model = model.unwrap_or_else(|| "a model without a name".to_owned());
    let mut lines = vec![format!("{}  at {}", paint.bold(&model), name(url))];
    match &registry.stats {
        Some(stats) => lines.extend(of_stats(stats, paint, size)),
        None => lines.push(field("bytes", "the server does not say")),
    }
    if let Some(serving) = &registry.serving {
        lines.extend(of_serving(serving));
    }
    let going = going(registry.going.as_deref().unwrap_or_default(), paint, size);
    // Those on their way out come last, and are not what is cut: somebody waits for them.
    let rows = size.rows.map(|rows| {
        let rest = rows.saturating_sub(lines.len() + going.len() + 2);
        rest.max(3)
    });
    lines.push(String::new());
    lines.extend(sets(registry, paint, Size { rows, ..size }));
    lines.push(String::new());
    lines.extend(going);
    lines
}

fn name(text: &str) -> String {
    clean_up_to(text, NAME)
}

/// With its namespace, if it is in one. As long as the columns beside it leave room for.
fn full_name(namespace: &str, set: &str, size: Size) -> String {
    let most = size.name();
    if namespace.is_empty() {
        clean_up_to(set, most)
    } else {
        clean_up_to(&format!("{namespace}/{set}"), most)
    }
}

fn of_stats(stats: &Stats, paint: Paint, size: Size) -> Vec<String> {
    let mut lines = of_ledger(&stats.ledger, size);
    let mut room = format!(
        "{} waiting for it; {} and {} so far",
        count_of(stats.waiting, "request"),
        count_of(stats.loads, "load"),
        count_of(stats.evictions, "eviction")
    );
    if stats.streams > 0 {
        room.push_str(&format!(", {}", count_of(stats.streams, "stream")));
    }
    if stats.pending_fences > 0 {
        room.push_str(&format!(
            ", {} pending",
            count_of(stats.pending_fences, "fence")
        ));
    }
    lines.push(field("room", &room));
    if let Some(oldest) = &stats.oldest_lease {
        lines.push(field("oldest", &format!("lease of {}", holder(oldest))));
    }
    // What is never there while everything is well.
    for (number, what) in [
        (stats.fence_panics, "fence panicked"),
        (stats.reclaimer_panics, "destructor panicked"),
        (stats.observer_panics, "observer panicked"),
        (stats.part_failures, "read of a part failed"),
        (
            stats.stranded_bytes,
            "byte cannot be given back to the system",
        ),
    ] {
        if number > 0 {
            let warning = format!("{number} x: a {what}");
            lines.push(format!("{} {warning}", paint.warning("warning:")));
        }
    }
    lines
}

fn of_ledger(ledger: &Ledger, size: Size) -> Vec<String> {
    let total = ledger.total();
    let used = match ledger.limit {
        Some(limit) => {
            let percent = total as f64 * 100.0 / limit.max(1) as f64;
            format!("{} of {}, {percent:.1} %", exact(total), exact(limit))
        }
        None => format!("{}, without a limit", exact(total)),
    };
    let states = ledger.states();
    let states: Vec<String> = states
        .iter()
        .filter(|(_, _, bytes)| *bytes > 0)
        .map(|(state, letter, bytes)| format!("{letter} {state} {}", human(*bytes)))
        .collect();
    let mut lines = vec![field("bytes", &used)];
    // Without a limit the bar is full of what is there.
    let whole = ledger.limit.unwrap_or(total);
    let width = size.columns.saturating_sub(14).clamp(10, 60);
    lines.push(field("", &format!("[{}]", bar(ledger, whole, width))));
    let states = if states.is_empty() {
        "nothing".to_owned()
    } else {
        states.join(", ")
    };
    lines.push(field("", &states));
    lines.push(field("peak", &exact(ledger.peak)));
    lines
}

/// A letter for each part of the whole. Where one state ends is where the sum up to it ends, so that
/// roundings do not add up.
fn bar(ledger: &Ledger, whole: u64, width: usize) -> String {
    let mut bar = String::new();
    let (mut sum, mut drawn) = (0u128, 0);
    for (_, letter, bytes) in ledger.states() {
        sum += u128::from(bytes);
        let end = sum * width as u128 / u128::from(whole.max(1));
        let end = usize::try_from(end).map_or(width, |end| end.min(width));
        bar.extend(std::iter::repeat_n(letter, end.saturating_sub(drawn)));
        drawn = drawn.max(end);
    }
    bar.extend(std::iter::repeat_n('.', width - drawn));
    bar
}

fn of_serving(serving: &Serving) -> [String; 2] {
    let mut now = format!("{} running, {} waiting", serving.running, serving.waiting);
    if let Some(oldest) = serving.oldest_request_seconds {
        now.push_str(&format!(", the oldest for {}", seconds(oldest)));
    }
    let speed = serving.tokens_per_second;
    let speed = speed.map_or_else(String::new, |speed| format!(" ({speed:.1}/s)"));
    let so_far = format!(
        "{} answered, {} failed, {}, {}{speed}",
        serving.requests,
        serving.failed,
        count_of(serving.swaps, "swap"),
        count_of(serving.tokens, "token")
    );
    [field("requests", &now), field("so far", &so_far)]
}

fn sets(registry: &Registry, paint: Paint, size: Size) -> Vec<String> {
    let Some(catalog) = &registry.catalog else {
        return vec!["The server does not say which sets it has.".to_owned()];
    };
    if catalog.sets.is_empty() {
        return vec!["No set is published.".to_owned()];
    }
    let mut table = Table::new([
        ("set", Align::Left),
        ("kind", Align::Left),
        ("generation", Align::Right),
        ("identity", Align::Left),
        ("bytes", Align::Right),
        ("resident", Align::Left),
        ("leases", Align::Right),
    ]);
    let mut sets: Vec<(&Set, Option<u64>)> = catalog
        .sets
        .iter()
        .map(|set| (set, registry.leases_of(set)))
        .collect();
    // If there is no room for all, then for those that are used. The order is the server's otherwise.
    let shown = size.rows.map_or(sets.len(), |rows| rows.saturating_sub(2));
    if shown < sets.len() {
        sets.sort_by_key(|(_, leases)| std::cmp::Reverse(*leases));
    }
    for (set, leases) in sets.iter().take(shown) {
        table.row([
            full_name(&set.namespace, &set.name, size),
            clean_up_to(&set.kind, IDENTITY),
            set.generation.to_string(),
            identity(&set.identity),
            size.bytes(set.bytes),
            set.resident
                .map_or("-", |resident| if resident { "yes" } else { "no" })
                .to_owned(),
            leases.map_or_else(|| "-".to_owned(), |leases| leases.to_string()),
        ]);
    }
    let mut lines = table.lines(paint);
    if let Some(more) = sets.len().checked_sub(shown).filter(|more| *more > 0) {
        lines.push(format!(
            "... and {} more, with fewer leases",
            count(more, "set")
        ));
    }
    lines
}

/// Enough of it to tell it from others: a digest is long, a revision need not be.
fn identity(text: &str) -> String {
    match text.split_once(':') {
        Some(("blake3", digest)) => format!("blake3:{}", clean_up_to(digest, 12)),
        _ => clean_up_to(text, IDENTITY),
    }
}

fn going(going: &[Going], paint: Paint, size: Size) -> Vec<String> {
    if going.is_empty() {
        return vec!["Nothing is on its way out.".to_owned()];
    }
    let mut table = Table::new([
        ("on its way out", Align::Left),
        ("generation", Align::Right),
        ("bytes", Align::Right),
        ("leases", Align::Right),
        ("in the way", Align::Left),
    ]);
    for one in going {
        let mut holders: Vec<String> = one.holders.iter().take(HOLDERS).map(holder).collect();
        if let Some(more) = one
            .holders
            .len()
            .checked_sub(HOLDERS)
            .filter(|more| *more > 0)
        {
            holders.push(format!("{more} more"));
        }
        let in_the_way = match (holders.is_empty(), one.leases) {
            (false, _) => holders.join(", "),
            (true, 0) => "nobody: being given back".to_owned(),
            (true, _) => "leases without a label".to_owned(),
        };
        table.row([
            full_name(&one.namespace, &one.name, size),
            one.generation.to_string(),
            size.bytes(one.bytes),
            one.leases.to_string(),
            in_the_way,
        ]);
    }
    table.lines(paint)
}

fn holder(holder: &Holder) -> String {
    format!(
        "{} for {}",
        name(&holder.label),
        seconds(holder.age_seconds)
    )
}

fn count_of(number: u64, one: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paint::PLAIN;

    fn ledger(limit: Option<u64>, resident: u64, retired: u64) -> Ledger {
        Ledger {
            limit,
            resident,
            retired,
            ..Ledger::default()
        }
    }

    #[test]
    fn a_bar_is_as_long_as_its_limit_whatever_is_in_it() {
        let drawn = |ledger: &Ledger, whole| bar(ledger, whole, 10);
        assert_eq!(drawn(&ledger(Some(100), 0, 0), 100), "..........");
        assert_eq!(drawn(&ledger(Some(100), 50, 25), 100), "#####rr...");
        assert_eq!(drawn(&ledger(Some(100), 100, 0), 100), "##########");
        let impossible = ledger(Some(1), u64::MAX, u64::MAX);
        assert_eq!(drawn(&impossible, 1), "##########");
        assert_eq!(drawn(&ledger(Some(0), 7, 0), 0), "##########");
    }

    #[test]
    fn where_there_is_no_room_the_used_sets_are_shown_and_the_rest_is_counted() {
        let sets: Vec<String> = (0..50)
            .map(|n| format!(r#"{{"name":"set-{n}","generation":1}}"#))
            .collect();
        let document = format!(
            r#"{{"schema":1,"catalog":{{"sets":[{}]}},
                "leases":[{{"name":"set-41","generation":1,"leases":1}}]}}"#,
            sets.join(",")
        );
        let registry = Registry::parse(document.as_bytes()).unwrap();
        let size = Size {
            columns: 80,
            rows: Some(20),
        };
        let lines = lines("http://h", &registry, PLAIN, size);
        assert!(lines.len() <= 20, "{}", lines.len());
        let text = lines.join("\n");
        assert!(
            text.contains("set-41 ") && text.contains("more, with fewer leases"),
            "{text}"
        );
        assert!(super::lines("", &registry, PLAIN, Size::PAGE).len() > 50);
    }

    #[test]
    fn identities_are_shortened_and_kept_apart() {
        let digest = format!("blake3:{}", "0123456789abcdef".repeat(4));
        assert_eq!(identity(&digest), "blake3:0123456789ab…");
        assert_eq!(identity("declared:step 100"), "declared:step 100");
        assert_eq!(identity("declared:\u{1b}[2J"), "declared:\\u{1b}[2J");
    }
}
