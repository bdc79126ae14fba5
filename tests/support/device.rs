//! A device that reads bytes behind the back of whoever leased them.

use std::sync::mpsc;
use std::time::Instant;

use weighbridge::{Lease, SetHandle, WeightHandle, WeightRegistry, fence};

use super::{SOON, bytes};

/// Waits for what another thread is going to make true.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// A device: reads the bytes of a lease that its owner has given away, when it is told to, and
/// says what it read.
pub struct Device {
    go: mpsc::Sender<()>,
    read: mpsc::Receiver<Vec<u8>>,
}

impl Device {
    /// Queues work on the bytes of `w` and gives the lease away behind the device's fence.
    pub fn queue(lease: Lease, w: WeightHandle, name: &str) -> Self {
        struct At(*const u8, usize);
        // SAFETY: the bytes are read-only and stay until the fence has passed: that is the test.
        unsafe impl Send for At {}
        impl At {
            /// # Safety
            /// The bytes are there.
            unsafe fn copy(&self) -> Vec<u8> {
                // SAFETY: the caller's.
                unsafe { std::slice::from_raw_parts(self.0, self.1) }.to_vec()
            }
        }
        let bytes = lease.weight(w).unwrap().bytes();
        let at = At(bytes.as_ptr(), bytes.len());
        let (done, fence) = fence::signal(name);
        let (go, start) = mpsc::channel::<()>();
        let (result, read) = mpsc::channel();
        std::thread::spawn(move || {
            if start.recv().is_ok() {
                // SAFETY: the signal is not set yet.
                let copied = unsafe { at.copy() };
                done.set();
                let _ = result.send(copied);
            }
        });
        lease.release_after(fence);
        Device { go, read }
    }

    /// Lets the device work, and waits for what it read.
    pub fn finish(&self) -> Vec<u8> {
        self.go.send(()).unwrap();
        self.read.recv_timeout(SOON).unwrap()
    }
}

/// A set of 65,536 bytes `fill`, and the handle of its tensor.
pub fn published(registry: &WeightRegistry, name: &str, fill: u8) -> (SetHandle, WeightHandle) {
    let set = registry.publish(name, bytes(1 << 16, fill)).unwrap();
    let w = registry.weight_handle(set, "w").unwrap();
    (set, w)
}
