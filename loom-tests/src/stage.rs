//! The stage: sets to play with, actors on threads of their own, a gate where one may stand still, a look at
//! what is left.

use std::sync::Arc;

use loom::thread;
use weighbridge::__loom::Key;
use weighbridge::__loom::sync::epoch::Participant;
use weighbridge::__loom::sync::{Condvar, Mutex};

use crate::rig::{Rig, Send2};

/// What one thread of a model does.
pub type Act = Box<dyn FnOnce(&Rig, &Participant) + Send>;

/// An actor of a model.
pub fn act(f: impl FnOnce(&Rig, &Participant) + Send + 'static) -> Act {
    Box::new(f)
}

/// Sets up, lets the actors run concurrently (the last one on the main thread), then looks at what
/// is left, and that nothing leaked.
///
/// # Panics
/// If something is wrong.
pub fn play<const N: usize>(
    sets: usize,
    script: impl FnOnce(&Rig, &[Key]) -> [Act; N],
    after: impl FnOnce(&Rig, &Participant, &[Key]),
) {
    let rig = Arc::new(Rig::new());
    let main = rig.member();
    let keys: Vec<Key> = (0..sets).map(|_| rig.publish(&main.0)).collect();
    let members: Vec<_> = (1..N).map(|_| rig.member()).collect();
    let mut acts = Vec::from(script(&rig, &keys));
    let last = acts.pop().expect("at least one actor");
    let threads: Vec<_> = acts
        .into_iter()
        .zip(members)
        .map(|(act, member)| {
            let rig = Arc::clone(&rig);
            thread::spawn(move || {
                let member = member;
                act(&rig, &member.0);
                drop(rig);
                member
            })
        })
        .collect();
    last(&rig, &main.0);
    let mut members: Vec<Send2<Participant>> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    after(&rig, &main.0, &keys);
    members.push(main);
    Arc::into_inner(rig)
        .expect("all threads are done")
        .finish(members);
}

/// Where one thread stands until another lets it pass.
#[derive(Default)]
pub struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Waits until the gate is open.
    pub fn pass(&self) {
        let mut open = self.open.lock();
        while !*open {
            open = self.opened.wait_deadline(open, None).0;
        }
    }

    /// Opens it.
    pub fn open(&self) {
        *self.open.lock() = true;
        self.opened.notify_all();
    }
}
