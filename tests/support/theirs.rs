//! Memory that somebody else owns, whose end is seen and can be held up.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use weighbridge::Dtype;
use weighbridge::memory::Owner;
use weighbridge::source::Foreign;

/// How often an owner ended, and on which thread.
#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<String>>);

impl Log {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn ends(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

type AtTheEnd = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// Memory for tests: of the host, or an address that means nothing.
pub struct Theirs {
    pub host: Option<Box<[u8]>>,
    pub len: u64,
    pub address: u64,
    charged: u64,
    log: Arc<Log>,
    at_the_end: AtTheEnd,
}

impl Theirs {
    pub fn on_host(bytes: impl Into<Box<[u8]>>, log: &Arc<Log>) -> Self {
        let bytes = bytes.into();
        Theirs {
            len: bytes.len() as u64,
            address: bytes.as_ptr().expose_provenance() as u64,
            host: Some(bytes),
            charged: 0,
            log: Arc::clone(log),
            at_the_end: Mutex::default(),
        }
    }

    pub fn on_device(len: u64, log: &Arc<Log>) -> Self {
        Theirs {
            host: None,
            len,
            address: 0xd000_0000,
            charged: 0,
            log: Arc::clone(log),
            at_the_end: Mutex::default(),
        }
    }

    pub fn charged(mut self, bytes: u64) -> Self {
        self.charged = bytes;
        self
    }

    pub fn at_the_end(self, does: impl FnOnce() + Send + 'static) -> Self {
        *self.at_the_end.lock().unwrap() = Some(Box::new(does));
        self
    }
}

impl Owner for Theirs {
    fn byte_len(&self) -> u64 {
        self.len
    }

    fn address(&self) -> u64 {
        self.address
    }

    fn as_host(&self) -> Option<&[u8]> {
        self.host.as_deref()
    }

    fn charged_bytes(&self) -> u64 {
        self.charged
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let thread = std::thread::current().name().unwrap_or("?").to_owned();
        self.log.0.lock().unwrap().push(thread);
        if let Some(does) = self.at_the_end.get_mut().unwrap().take() {
            does();
        }
    }
}

/// One tensor, `w`, that is all of the memory.
pub fn whole(owner: Theirs) -> Foreign {
    let len = owner.len as usize;
    let source = Foreign::new(owner).unwrap();
    source.tensor("w", Dtype::U8, [len], 0).unwrap()
}

/// An owner whose end has begun, and waits to be told.
pub fn slow(log: &Arc<Log>) -> (Theirs, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let owner = Theirs::on_device(8, log).at_the_end(move || {
        begun.send(()).unwrap();
        may_go_on.recv().unwrap();
    });
    (owner, has_begun, go_on)
}
