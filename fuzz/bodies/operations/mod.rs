//! A registry, driven by the input, beside a model of it.
//!
//! What lives here: one run. The input stands for a list of operations (`words`), which are done to a
//! registry (`drive`, `together`) and to a few lists (`model`, `commit`); each must answer what the other
//! says, and after each everything that can be asked is compared (`check`). At the end all is let go, and
//! all bytes are back. What does not: more than one thread; that is what the library's histories are for.

mod check;
mod commit;
mod drive;
mod model;
mod story;
mod together;
mod words;

use weighbridge::WeightRegistry;

use drive::Run;

pub fn run(data: &[u8]) {
    let (setup, ops) = words::decode(data);
    story::begin(&setup);
    let limit = setup.lines * 64;
    let builder = WeightRegistry::builder().limit_bytes(limit);
    let registry = builder
        .keep_previous(setup.keep)
        .build()
        .expect("a registry");
    let mut run = Run::new(&registry, limit, setup.keep);
    for op in ops {
        story::tell(&op);
        run.act(op);
        run.check();
    }
    run.finish();
    story::end();
}
