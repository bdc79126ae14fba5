//! The table: weighbridge beside the usual maps, and what becomes of all rows.
//!
//! `cargo bench -p weighbridge-benches --bench table` measures; with `--merge FILE`, once or more, it puts
//! rows together that this program and `benches/seed` have written. `benches/run` does all of it.
//!
//! What lives here: the two ways to start it. What does not: the cells and the figures (the library), the
//! file of all rows (`merged`), the plots (`plots`, `canvas`).

#[path = "canvas.rs"]
mod canvas;
#[path = "merged.rs"]
mod merged;
#[path = "plots.rs"]
mod plots;

use weighbridge_benches::harness::allocated::Counted;
use weighbridge_benches::harness::options::Options;
use weighbridge_benches::harness::rows::Report;
use weighbridge_benches::harness::usual::Usual;
use weighbridge_benches::harness::{cells, turns};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

fn main() {
    turns::end_on_panic();
    let options = Options::read();
    if !options.merge.is_empty() {
        let all = merged::All::of(&options);
        all.print();
        all.write(&options.out);
        plots::draw(&all, &options.out);
        return;
    }
    let mut report = Report::new(options);
    cells::run(&mut report, &Usual);
    report.write();
}
