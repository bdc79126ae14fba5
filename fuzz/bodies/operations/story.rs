//! What a run has done so far, to be told if it ends in a panic.
//!
//! What lives here: that. It is the panic's hook that tells: under libFuzzer nothing unwinds.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::Once;

thread_local! {
    static STORY: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

static HOOK: Once = Once::new();

pub fn begin(setup: &impl Debug) {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            STORY.with_borrow(|story| story.iter().for_each(|line| eprintln!("  {line}")));
            before(panic);
        }));
    });
    end();
    tell(setup);
}

pub fn tell(what: &impl Debug) {
    STORY.with_borrow_mut(|story| story.push(format!("{what:?}")));
}

pub fn end() {
    STORY.with_borrow_mut(Vec::clear);
}
