//! Loads of one name, one after the other.
//!
//! What lives here: [`Turns`]: who loads what, and waiting for a turn. What does not: loading (`adapters`), for how long
//! somebody waits (`http::lora`).

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Names that are being loaded, each once.
#[derive(Default)]
pub(crate) struct Turns {
    coming: Mutex<BTreeSet<String>>,
    gone: Notify,
}

/// The right to load a name, until it is dropped.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    name: String,
}

impl Turns {
    /// Waits until nobody else loads this name. `may` is asked when that is so, with the names that others load, and
    /// nobody else is let in between its answer and this turn.
    pub(crate) async fn take<E>(
        self: &Arc<Self>,
        name: &str,
        may: impl Fn(&BTreeSet<String>) -> Result<(), E>,
    ) -> Result<Turn, E> {
        loop {
            // Before the look: whoever goes after it is heard.
            let gone = self.gone.notified();
            {
                let mut coming = self.lock();
                if !coming.contains(name) {
                    may(&coming)?;
                    coming.insert(name.to_owned());
                    return Ok(Turn {
                        turns: Arc::clone(self),
                        name: name.to_owned(),
                    });
                }
            }
            gone.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().remove(&self.name);
        self.turns.gone.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn one_name_has_one_turn_and_others_do_not_wait() {
        let turns = Arc::new(Turns::default());
        let any = |_: &BTreeSet<String>| Ok::<_, Infallible>(());
        let first = turns.take("a", any).await.unwrap();
        let other = turns.take("b", any).await.unwrap();
        let mut second = Box::pin(turns.take("a", any));
        let waits = tokio::time::timeout(std::time::Duration::ZERO, &mut second).await;
        assert!(waits.is_err(), "two at once");
        // Who gives up while he waits is in nobody's way.
        drop(Box::pin(turns.take("a", any)));
        drop(first);
        drop(second.await.unwrap());
        let refused = turns.take("c", |coming| match coming.len() {
            0 => Ok(()),
            others => Err(others),
        });
        assert_eq!(refused.await.err(), Some(1));
        drop(other);
        assert!(turns.lock().is_empty());
    }
}
