//! Pictures of the rows.
//!
//! What lives here: which rows go into which picture. What does not: how a picture is drawn (`canvas`), what the
//! rows come to (`merged`).

use std::path::Path;

use plotters::style::RGBColor;
use weighbridge_benches::harness::rows::Row;

use super::canvas::{Canvas, Dot, Line, Panel};
use super::merged::{All, SEED};

const OURS: [RGBColor; 3] = [
    RGBColor(0xc0, 0x39, 0x2b),
    RGBColor(0xe0, 0x7b, 0x39),
    RGBColor(0x7d, 0x1f, 0x4f),
];

/// The same peer has the same colour in every picture.
fn colour(peer: &str) -> RGBColor {
    match peer.split(',').next().unwrap_or(peer) {
        "RwLock<HashMap>" => RGBColor(0x6b, 0x6b, 0x6b),
        "dashmap" => RGBColor(0x1f, 0x77, 0xb4),
        "papaya" => RGBColor(0x2c, 0xa0, 0x2c),
        "scc HashIndex" => RGBColor(0x94, 0x67, 0xbd),
        "ArcSwap<HashMap>" => RGBColor(0x17, 0xa2, 0xb8),
        "ArcSwap<Entry>" => RGBColor(0x0b, 0x4f, 0x5c),
        SEED if peer.ends_with("RwLock") => RGBColor(0xb8, 0x86, 0x0b),
        SEED if peer.ends_with("Mutex") => RGBColor(0x8c, 0x56, 0x4b),
        SEED => RGBColor(0xd6, 0x9c, 0x6b),
        _ => RGBColor(0xb0, 0xb0, 0xb0),
    }
}

/// Draws all pictures for which there are rows.
///
/// # Panics
/// If one cannot be written.
pub fn draw(all: &All, out: &Path) {
    ratios(all, &out.join("ratios.svg"));
    lookups(all, &out.join("lookup.svg"));
    threads(all, &out.join("threads.svg"));
    queries(all, &out.join("queries.svg"));
}

/// One line for each group of cells and way of ours, one dot for each peer.
fn ratios(all: &All, path: &Path) {
    let mut lines: Vec<(String, Vec<Dot>)> = Vec::new();
    for mean in &all.summary.groups {
        let way = mean.way.as_ref().map(|way| format!(", {way}"));
        let title = format!("{}{}", mean.group, way.unwrap_or_default());
        if lines.last().is_none_or(|(last, _)| *last != title) {
            lines.push((title, Vec::new()));
        }
        if let Some((_, dots)) = lines.last_mut() {
            dots.push(Dot {
                name: mean.peer.clone(),
                at: mean.geometric_mean,
                colour: colour(&mean.peer),
                hollow: mean.peer.ends_with(" held"),
            });
        }
    }
    if lines.is_empty() {
        return;
    }
    let title = "A peer's time over ours, geometric mean over all cells of a kind";
    Canvas::dots(
        path,
        title,
        "right of the line weighbridge is ahead",
        &lines,
    );
}

/// Rows as a line of points: `x` of a row, and its time or, of ours, our own.
fn line<'r>(
    name: &str,
    colour: RGBColor,
    rows: impl Iterator<Item = &'r Row>,
    x: fn(&Row) -> usize,
    y: fn(&Row) -> f64,
) -> Line {
    let mut points: Vec<(f64, f64)> = rows.map(|row| (x(row) as f64, y(row))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points.dedup_by(|a, b| a.0 == b.0);
    Line {
        name: name.to_owned(),
        colour,
        bold: false,
        points,
    }
}

/// Ours, way by way, and all peers, of the rows that are picked.
fn lines(all: &All, picked: impl Fn(&Row) -> bool, x: fn(&Row) -> usize) -> Vec<Line> {
    let rows: Vec<&Row> = all.rows.iter().filter(|row| picked(row)).collect();
    let mut ways: Vec<Option<&str>> = Vec::new();
    let mut peers: Vec<&str> = Vec::new();
    for row in &rows {
        let (way, peer) = (row.way.as_deref(), &*row.peer);
        if !ways.contains(&way) {
            ways.push(way);
        }
        if !peers.contains(&peer) {
            peers.push(peer);
        }
    }
    let of_ours = ways.iter().zip(OURS).map(|(&way, colour)| {
        let rows = rows.iter().copied().filter(|row| row.way.as_deref() == way);
        let name = way.map_or("weighbridge".to_owned(), |way| {
            format!("weighbridge, {way}")
        });
        let mut line = line(&name, colour, rows, x, |row| row.ours_ns);
        line.bold = true;
        line
    });
    let of_peers = peers.iter().map(|&peer| {
        let rows = rows.iter().copied().filter(|row| row.peer == peer);
        line(peer, colour(peer), rows, x, |row| row.peer_ns)
    });
    // Ours last, over the others.
    of_peers.chain(of_ours).collect()
}

fn lookups(all: &All, path: &Path) {
    let panel = |threads: usize| {
        let picked = |row: &Row| {
            row.group == "lookup"
                && row.threads == threads
                && row.writes_per_second.is_none()
                && row.name.contains("uniform")
                && !row.extra
        };
        Panel {
            title: match threads {
                1 => "1 thread, uniform, no writer".to_owned(),
                _ => format!("{threads} threads, uniform, no writer"),
            },
            x: "names",
            lines: lines(all, picked, |row| row.size),
        }
    };
    Canvas::lines(path, "From a name to a handle, ns", &[panel(1), panel(2)]);
}

fn threads(all: &All, path: &Path) {
    let panel = |title: &str, name: &str| {
        let picked = |row: &Row| row.name == name && row.counts() && !row.peer.ends_with(" held");
        Panel {
            title: title.to_owned(),
            x: "threads",
            lines: lines(all, picked, |row| row.threads),
        }
    };
    let panels = [
        panel("get by handle", "get by handle, one key"),
        panel("acquire and drop", "acquire and drop, one set"),
    ];
    Canvas::lines(
        path,
        "All threads use the same entry, ns of a thread's time",
        &panels,
    );
}

fn queries(all: &All, path: &Path) {
    let panels = ["total_bytes", "adapter_handles", "adapter_names"].map(|question| {
        let picked = |row: &Row| {
            row.group == "queries" && row.name.contains(question) && row.peer.starts_with(SEED)
        };
        let mut lines = lines(all, picked, |row| row.size);
        // Beyond what the seed was asked about there is only ours.
        let alone = |row: &&Row| row.group == "queries" && row.name.contains(question) && row.limit;
        let ours = line(
            "weighbridge",
            OURS[0],
            all.rows.iter().filter(alone),
            |row| row.size,
            |row| row.ours_ns,
        );
        lines.retain(|line| line.name != ours.name);
        lines.push(Line { bold: true, ..ours });
        Panel {
            title: question.to_owned(),
            x: "tensors",
            lines,
        }
    });
    Canvas::lines(path, "Questions about all of it, ns", &panels);
}
