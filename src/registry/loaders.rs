//! Threads that read for futures, and ahead for streams.
//!
//! What lives here: a few threads, started when there is something to do and none is idle. What does not:
//! what they do (`room::Job`, `stream::reader`). Callers that may wait read on their own thread.

use std::collections::VecDeque;
use std::sync::Arc;

use super::here;
use super::shared::Shared;
use crate::core::panics;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};

type Task = Box<dyn FnOnce() + Send>;

/// See the module documentation.
pub(super) struct Loaders {
    desk: Arc<Desk>,
    most: usize,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<Task>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    /// Somebody does what there is to do where it was asked for.
    here: bool,
    closed: bool,
}

impl Loaders {
    /// At most so many threads; at least one.
    pub(super) fn new(most: usize, shared: Arc<Shared>) -> Self {
        Loaders {
            desk: Arc::default(),
            most: most.max(1),
            shared,
        }
    }

    /// Has `task` done soon, in the order in which they came. If the system has no thread at all, it is
    /// done here.
    pub(super) fn run(&self, task: impl FnOnce() + Send + 'static) {
        let mut state = self.desk.state.lock(); // E79
        state.tasks.push_back(Box::new(task));
        if state.idle < state.tasks.len() && state.threads.len() < self.most {
            match self.desk.start() {
                Ok(thread) => state.threads.push(thread),
                Err(_) if !state.threads.is_empty() => {}
                // Whoever is at it does this, too.
                Err(_) if state.here => {}
                Err(_) => {
                    state.here = true;
                    while let Some(task) = state.tasks.pop_front() {
                        drop(state);
                        let _ = panics(task);
                        state = self.desk.state.lock(); // E79
                        // No longer than it must: whoever came has other things to do.
                        if !state.tasks.is_empty()
                            && let Ok(thread) = self.desk.start()
                        {
                            state.threads.push(thread);
                            break;
                        }
                    }
                    state.here = false;
                    return;
                }
            }
        }
        drop(state);
        // One is enough: whoever waits takes any task, and whoever works looks for one before it waits.
        self.desk.changed.notify_one();
    }

    /// [`run`](Self::run), for a task of these loaders that has something left to do when the others have had their turn: whoever does
    /// it looks for the next one right away, so nobody is woken or started for it. From elsewhere nobody might come.
    pub(super) fn run_again(&self, task: impl FnOnce() + Send + 'static) {
        self.desk.state.lock().tasks.push_back(Box::new(task)); // E79
    }
}

impl Desk {
    fn start(self: &Arc<Self>) -> std::io::Result<JoinHandle<()>> {
        let desk = Arc::clone(self);
        thread::spawn_named("weighbridge-loader", move || desk.work())
    }

    fn work(&self) {
        let mut state = self.state.lock(); // E79
        loop {
            if let Some(task) = state.tasks.pop_front() {
                drop(state);
                // What it has is dropped here, too: it may be the last to have the registry.
                let _ = panics(task);
                // An idle thread would sit on what it has to let go of for the registry's life.
                let _ = panics(here::hand_over);
                state = self.state.lock(); // E79
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.changed.wait_deadline(state, None).0;
                state.idle -= 1;
            }
        }
    }
}

impl Drop for Loaders {
    /// Nobody has anything to do for them any more: the registry is gone, and so are all streams.
    fn drop(&mut self) {
        if self.shared.check_process().is_err() {
            // In a forked child there are no threads, and a lock may be held for ever.
            return std::mem::forget(std::mem::take(&mut self.desk));
        }
        let threads = {
            let mut state = self.desk.state.lock(); // E79
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.desk.changed.notify_all();
        for thread in threads {
            // The last to have the registry, or a stream, may be one of them.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
