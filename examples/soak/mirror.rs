//! A copy of the registry that is made of its events alone, to be compared with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use weighbridge::{CatalogEntry, Event, EventKind, Next, SetHandle, Subscription};

use crate::options::Plant;
use crate::world::{World, bump};

/// What the events have told.
#[derive(Debug, Clone, Default)]
pub struct Picture {
    /// Generation and bytes of what is current, and whether it has them.
    pub current: HashMap<SetHandle, (u64, u64, bool)>,
    /// Superseded generations that were not reclaimed yet.
    pub going: HashSet<(SetHandle, u64)>,
    /// Events were missed since the picture was last taken from the catalog.
    pub blind: bool,
}

impl Picture {
    pub fn is_empty(&self) -> bool {
        self.current.is_empty() && self.going.is_empty()
    }

    /// The bytes of a generation went, or came back, and they had not already. One that was superseded
    /// meanwhile is nobody's concern any more.
    fn moved(&mut self, now: &CatalogEntry, resident: bool) -> Result<(), String> {
        let known = self.current.get_mut(&now.handle);
        let Some(known) = known.filter(|known| known.0 == now.generation.number()) else {
            return Ok(());
        };
        let before = *known;
        known.2 = resident;
        if now.resident != resident || before.1 != now.bytes || before.2 == resident {
            return Err(format!("{now:?}, and it was {before:?}"));
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        match event.kind {
            EventKind::Published { now, .. } => {
                let value = (now.generation.number(), now.bytes, now.resident);
                if self.current.insert(now.handle, value).is_some() {
                    return Err(format!("{} was published twice", now.name));
                }
            }
            EventKind::Replaced { now, previous, .. } => {
                let value = (now.generation.number(), now.bytes, now.resident);
                let before = self.current.insert(now.handle, value);
                let was = previous.generation.number();
                self.going.insert((previous.handle, was));
                if before.map(|it| it.0) != Some(was) {
                    return Err(format!("{} replaced {was}, not {before:?}", now.name));
                }
            }
            EventKind::Retired { previous, .. } => {
                let before = self.current.remove(&previous.handle);
                let was = previous.generation.number();
                self.going.insert((previous.handle, was));
                if before.map(|it| it.0) != Some(was) {
                    return Err(format!("{} retired {was}, not {before:?}", previous.name));
                }
            }
            EventKind::Reclaimed { former, .. } => {
                let gone = (former.handle, former.generation.number());
                if !self.going.remove(&gone) {
                    return Err(format!("{} was reclaimed before it went", former.name));
                }
            }
            EventKind::Evicted { now, .. } => self.moved(&now, false)?,
            EventKind::Loaded { now, .. } => self.moved(&now, true)?,
            _ => {}
        }
        Ok(())
    }
}

enum Question {
    Tell(Sender<Picture>),
    Forget(Sender<()>),
}

/// The thread that reads the events, and the way to ask it.
pub struct Mirror {
    thread: JoinHandle<Picture>,
    questions: Sender<Question>,
}

impl Mirror {
    pub fn start(world: &Arc<World>) -> Self {
        let (questions, asked) = mpsc::channel();
        let events = world.registry.events();
        // The world goes before its registry does.
        let world = Arc::downgrade(world);
        let thread = thread::spawn(move || {
            let tell = |what: String| {
                if let Some(world) = world.upgrade() {
                    world.fail(format!("events: {what}"));
                }
            };
            let plant = || {
                let world = world.upgrade();
                let due = world.as_ref().is_some_and(|it| it.plants(Plant::Event));
                if let Some(world) = world {
                    bump(&world.counts.events);
                }
                due
            };
            follow(events, &asked, tell, plant)
        });
        Mirror { thread, questions }
    }

    /// The picture, when no event is under way any more. `None`: the thread has ended.
    pub fn ask(&self) -> Option<Picture> {
        let (answer, told) = mpsc::channel();
        self.questions.send(Question::Tell(answer)).ok()?;
        told.recv_timeout(Duration::from_secs(30)).ok()
    }

    /// Everything was let go: the picture starts anew, with no room left over from before.
    pub fn forget(&self) -> bool {
        let (answer, told) = mpsc::channel();
        let sent = self.questions.send(Question::Forget(answer));
        sent.is_ok() && told.recv_timeout(Duration::from_secs(30)).is_ok()
    }

    /// The last picture, after the registry was dropped.
    pub fn end(self) -> Option<Picture> {
        self.thread.join().ok()
    }
}

fn follow(
    mut events: Subscription,
    asked: &Receiver<Question>,
    tell: impl Fn(String),
    plant: impl Fn() -> bool,
) -> Picture {
    let mut picture = Picture::default();
    // A question is answered by what is there after it was asked.
    let mut question: Option<Question> = None;
    loop {
        match events.next_timeout(Duration::from_millis(50)) {
            Next::Event(event) => {
                let commit = !matches!(event.kind, EventKind::Refused { .. });
                if commit && plant() {
                    continue;
                }
                if let Err(wrong) = picture.take(event)
                    && !picture.blind
                {
                    tell(wrong);
                }
            }
            Next::Missed(_) => picture.blind = true,
            Next::Nothing => {
                match question.take() {
                    // Who asked waits for the answer, but not for ever.
                    Some(Question::Tell(answer)) => {
                        let _ = answer.send(picture.clone());
                    }
                    Some(Question::Forget(done)) => {
                        picture = Picture::default();
                        let _ = done.send(());
                    }
                    None => {}
                }
                question = asked.try_recv().ok();
            }
            Next::Closed => return picture,
        }
    }
}
