//! How a picture is drawn.
//!
//! What lives here: panels with lines on logarithmic scales, and dots beside a line at one. What does not:
//! what is in them (`plots`).
//!
//! Places are worked out here, in pixels, and not left to the library: labels stand at values that were
//! measured, and the legend stands below, where no line goes.

use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const WIDTH: i32 = 960;
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// About what a letter takes of its size: the library does not read fonts.
const LETTER: f64 = 0.56;
const TEXT: i32 = 14;
const ROW: i32 = 36;

/// A line through points.
pub struct Line {
    pub name: String,
    pub colour: RGBColor,
    pub bold: bool,
    pub points: Vec<(f64, f64)>,
}

/// Lines with scales of their own.
pub struct Panel {
    pub title: String,
    /// What goes to the right.
    pub x: &'static str,
    pub lines: Vec<Line>,
}

/// A value in a row of dots.
pub struct Dot {
    pub name: String,
    pub at: f64,
    pub colour: RGBColor,
    pub hollow: bool,
}

type Area<'p> = DrawingArea<SVGBackend<'p>, plotters::coord::Shift>;

/// An SVG that is drawn on.
pub struct Canvas<'p>(Area<'p>);

impl<'p> Canvas<'p> {
    fn new(path: &'p Path, height: i32, title: &str) -> Self {
        let area = SVGBackend::new(path, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE).expect("drawn");
        let canvas = Canvas(area);
        canvas.text(title, (WIDTH / 2, 20), TEXT + 4, HPos::Center);
        canvas
    }

    fn text(&self, text: &str, at: (i32, i32), size: i32, side: HPos) {
        let style = ("sans-serif", size).into_font().color(&INK);
        let style = style.pos(Pos::new(side, VPos::Center));
        self.0
            .draw(&Text::new(text.to_owned(), at, style))
            .expect("drawn");
    }

    fn path(&self, points: Vec<(i32, i32)>, colour: RGBColor, width: u32) {
        let style = colour.stroke_width(width);
        self.0
            .draw(&PathElement::new(points, style))
            .expect("drawn");
    }

    fn dot(&self, at: (i32, i32), size: i32, colour: RGBColor, hollow: bool) {
        let dot = |size, style: ShapeStyle| {
            self.0.draw(&Circle::new(at, size, style)).expect("drawn");
        };
        if hollow {
            dot(size, WHITE.filled());
            dot(size, colour.stroke_width(2));
        } else {
            dot(size, colour.filled());
        }
    }

    /// Names and colours, in rows that are as full as they can be.
    fn legend(&self, top: i32, names: &[(&str, RGBColor, bool)]) {
        for (&(name, colour, hollow), (x, y)) in names.iter().zip(places(names)) {
            let at = (x, top + y);
            self.dot(at, 5, colour, hollow);
            self.text(name, (x + 12, at.1), TEXT, HPos::Left);
        }
    }

    /// Panels side by side.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn lines(path: &'p Path, title: &str, panels: &[Panel]) {
        let mut names: Vec<(&str, RGBColor, bool)> = Vec::new();
        for line in panels.iter().flat_map(|panel| &panel.lines) {
            if !names.iter().any(|(name, ..)| *name == line.name) {
                names.push((&line.name, line.colour, false));
            }
        }
        if panels
            .iter()
            .all(|panel| panel.lines.iter().all(|line| line.points.is_empty()))
        {
            return;
        }
        // All panels have one scale upwards, so that they can be compared.
        let all = || panels.iter().flat_map(|panel| &panel.lines);
        let upwards = bounds(all().flat_map(|line| line.points.iter().map(|point| point.1)));
        let (top, tall) = (70, 330);
        let legend = top + tall + 76;
        let rows = places(&names).last().map_or(0, |place| place.1);
        let canvas = Canvas::new(path, legend + rows + 24, title);
        let wide = (WIDTH - 30) / panels.len() as i32;
        for (at, panel) in panels.iter().enumerate() {
            let left = 60 + wide * at as i32;
            canvas.panel(panel, (left, top), (wide - 60, tall), &upwards);
        }
        canvas.legend(legend, &names);
        canvas.0.present().expect("written");
    }

    fn panel(
        &self,
        panel: &Panel,
        (left, top): (i32, i32),
        (wide, tall): (i32, i32),
        upwards: &Range<f64>,
    ) {
        let mut values: Vec<f64> = panel
            .lines
            .iter()
            .flat_map(|line| line.points.iter().map(|point| point.0))
            .collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let across = values.first().map_or(1.0..2.0, |&first| {
            let last = values.last().map_or(first, |&last| last);
            first / 1.15..last * 1.15
        });
        let x = |value: f64| left + (share(value, &across) * f64::from(wide)) as i32;
        let y = |value: f64| top + tall - (share(value, upwards) * f64::from(tall)) as i32;
        self.text(
            &panel.title,
            (left + wide / 2, top - 18),
            TEXT,
            HPos::Center,
        );
        for value in steps(upwards) {
            self.path(vec![(left, y(value)), (left + wide, y(value))], GRID, 1);
            self.text(&short(value), (left - 6, y(value)), TEXT - 2, HPos::Right);
        }
        let mut free = left - wide;
        for &value in &values {
            self.path(vec![(x(value), top), (x(value), top + tall)], GRID, 1);
            // Two values that are too close have one label.
            let half = (short(value).len() as f64 * f64::from(TEXT) * LETTER / 2.0) as i32;
            if x(value) - half > free {
                self.text(
                    &short(value),
                    (x(value), top + tall + 14),
                    TEXT - 2,
                    HPos::Center,
                );
                free = x(value) + half + 4;
            }
        }
        self.text(
            panel.x,
            (left + wide / 2, top + tall + 38),
            TEXT,
            HPos::Center,
        );
        let frame = [(0, 0), (0, tall), (wide, tall)].map(|(x, y)| (left + x, top + y));
        self.path(frame.to_vec(), INK, 1);
        for line in &panel.lines {
            let points: Vec<_> = line.points.iter().map(|&(a, b)| (x(a), y(b))).collect();
            for &point in &points {
                self.dot(point, if line.bold { 5 } else { 3 }, line.colour, false);
            }
            self.path(points, line.colour, if line.bold { 3 } else { 2 });
        }
    }

    /// Rows of dots on one scale, with a line at 1.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn dots(path: &'p Path, title: &str, below: &str, rows: &[(String, Vec<Dot>)]) {
        let mut names: Vec<(&str, RGBColor, bool)> = Vec::new();
        for dot in rows.iter().flat_map(|(_, dots)| dots) {
            if !names.iter().any(|(name, ..)| *name == dot.name) {
                names.push((&dot.name, dot.colour, dot.hollow));
            }
        }
        let values = rows
            .iter()
            .flat_map(|(_, dots)| dots.iter().map(|dot| dot.at));
        let across = bounds(values.chain([1.0]));
        let longest = rows.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
        let left = (longest as f64 * f64::from(TEXT) * LETTER) as i32 + 20;
        let (top, wide, tall) = (50, WIDTH - left - 30, ROW * rows.len() as i32);
        let legend = top + tall + 76;
        let more = places(&names).last().map_or(0, |place| place.1);
        let canvas = Canvas::new(path, legend + more + 24, title);
        let x = |value: f64| left + (share(value, &across) * f64::from(wide)) as i32;
        for value in steps(&across) {
            canvas.path(vec![(x(value), top), (x(value), top + tall)], GRID, 1);
            let label = format!("{value}x");
            canvas.text(&label, (x(value), top + tall + 14), TEXT - 2, HPos::Center);
        }
        canvas.path(vec![(x(1.0), top - 6), (x(1.0), top + tall + 6)], INK, 2);
        canvas.text(
            below,
            (left + wide / 2, top + tall + 38),
            TEXT,
            HPos::Center,
        );
        for (at, (title, dots)) in rows.iter().enumerate() {
            let y = top + ROW * at as i32 + ROW / 2;
            canvas.path(vec![(left, y), (left + wide, y)], GRID, 1);
            canvas.text(title, (left - 10, y), TEXT, HPos::Right);
            // One below the other, or they would hide each other.
            let apart = 24 / dots.len().max(5) as i32;
            let first = y - apart * (dots.len() as i32 - 1) / 2;
            for (dot, at) in dots.iter().zip(0..) {
                let at = (x(dot.at), first + apart * at);
                canvas.dot(at, 5, dot.colour, dot.hollow);
            }
        }
        canvas.legend(legend, &names);
        canvas.0.present().expect("written");
    }
}

/// Where the entries of a legend stand.
fn places(names: &[(&str, RGBColor, bool)]) -> Vec<(i32, i32)> {
    let (mut x, mut y) = (40, 0);
    let mut all = Vec::new();
    for (name, ..) in names {
        let wide = 12 + (name.len() as f64 * f64::from(TEXT) * LETTER) as i32 + 24;
        if x + wide > WIDTH && x > 40 {
            (x, y) = (40, y + 24);
        }
        all.push((x, y));
        x += wide;
    }
    all
}

/// How far a value is on its way through a range, on a logarithmic scale.
fn share(value: f64, range: &Range<f64>) -> f64 {
    (value / range.start).ln() / (range.end / range.start).ln()
}

/// A range with all of `values`, and a little more.
fn bounds(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
    for value in values {
        (least, most) = (least.min(value), most.max(value));
    }
    least / 1.3..most * 1.3
}

/// Round values within a range: by tens where there are many tens, otherwise 1, 2 and 5.
fn steps(range: &Range<f64>) -> Vec<f64> {
    let tens = (range.end / range.start).log10();
    let between: &[f64] = if tens > 3.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let first = range.start.log10().floor() as i32;
    let last = range.end.log10().ceil() as i32;
    let all = (first..=last).flat_map(|ten| between.iter().map(move |step| step * 10f64.powi(ten)));
    all.filter(|value| range.contains(value)).collect()
}

/// A number in few letters.
fn short(value: f64) -> String {
    match value {
        1e6.. => format!("{}M", value / 1e6),
        1e3.. => format!("{}k", value / 1e3),
        _ => format!("{}", (value * 1e3).round() / 1e3),
    }
}
