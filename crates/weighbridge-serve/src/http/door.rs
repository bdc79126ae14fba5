//! Connections: how many there are, how long a client may keep one waiting, and how they end.
//!
//! What lives here: [`Door`], and how it is noticed that a client has gone. What does not: what is answered on a
//! connection, how long a body may take (`body`).

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

/// The longest head of a request.
const HEAD: usize = 64 << 10;

/// How long it waits when the system has no room for another connection: some must end first, and nobody tells.
const BREATH: Duration = Duration::from_millis(100);

pub(crate) struct Door {
    listener: TcpListener,
    router: Router,
    places: Arc<Semaphore>,
    open: Arc<AtomicUsize>,
    patience: Duration,
    graceful: GracefulShutdown,
}

impl Door {
    /// For as many connections at a time as there are `places`; `open` is how many there are. A client that lets the
    /// server wait for longer than `patience`, for a request's head or for room to write to, is cut off; one that
    /// has sent nothing for so long, too.
    pub(crate) fn new(
        listener: TcpListener,
        router: Router,
        places: usize,
        open: Arc<AtomicUsize>,
        patience: Duration,
    ) -> Self {
        Door {
            listener,
            router,
            places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            open,
            patience,
            graceful: GracefulShutdown::new(),
        }
    }

    /// Lets clients in for as long as it is polled. Who finds no place waits in the system's queue.
    pub(crate) async fn let_in(&self) -> Infallible {
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await;
            let Ok(place) = place else {
                // Nobody closes it.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = self.begin(stream, place) {
                        tracing::warn!(%error, "a connection was not begun");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    fn begin(&self, stream: TcpStream, place: OwnedSemaphorePermit) -> io::Result<()> {
        // Without it a stream's pieces wait for each other.
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let gone = gone(TcpStream::from_std(stream.try_clone()?)?);
        let mut stream = TimeoutStream::new(TcpStream::from_std(stream)?);
        stream.set_write_timeout(Some(self.patience));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience)
            .max_buf_size(HEAD)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(self.router.clone()),
            );
        let connection = self.graceful.watch(connection);
        let open = Arc::clone(&self.open);
        tokio::spawn(async move {
            // Relaxed: a number, which says nothing of other memory.
            open.fetch_add(1, Ordering::Relaxed);
            tokio::select! {
                // First: what is ready when a client has closed his side goes out to him.
                biased;
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection was cut off");
                },
                () = gone => {}
            }
            open.fetch_sub(1, Ordering::Relaxed);
            drop(place);
        });
        Ok(())
    }

    /// Takes no more, closes those that are idle, and is there when the others have ended.
    pub(crate) async fn close(self) {
        let Door {
            listener, graceful, ..
        } = self;
        drop(listener);
        graceful.shutdown().await;
    }
}

/// There when the client has closed its side, or all of it. hyper looks for that too, but not while it has bytes of the
/// client's that it has not read yet; and what nobody waits for any more must not go on for them.
async fn gone(twin: TcpStream) {
    while let Ok(ready) = twin.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        // Nothing is read here. It is asked again when something new has come.
        let nothing: io::Result<()> =
            twin.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
        drop(nothing);
    }
}
