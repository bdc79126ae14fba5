//! Bytes that several generations have.
//!
//! What lives here: that the last of them to go frees the bytes. What does not: the count
//! (`sync::share`), when a generation goes (`state`, `node`).

use super::node::Storage;
use crate::sync::share::Share;

/// A generation's share. Each generation's taker ends one, on the reclaimer's thread; the last of them
/// frees the bytes.
impl<S: Storage> Storage for Share<S> {
    fn dismantle(self, step: &mut dyn FnMut()) {
        // E19: exactly one of them gets it, after all uses under the others' leases: each use comes
        // before its generation's taker (E4), who ends the share.
        if let Some(storage) = self.end() {
            storage.dismantle(step);
        }
    }
}
