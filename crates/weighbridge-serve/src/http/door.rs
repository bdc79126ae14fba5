//! Connections: how many there are, how long a client may keep one waiting, and how they end.
//!
//! What lives here: [`Door`]. What does not: what is answered on a connection, how long a body may take (`body`).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;

/// How long it waits when the system has no room for another connection: some must end first, and nobody tells.
const BREATH: Duration = Duration::from_millis(100);

pub(crate) struct Door {
    listener: TcpListener,
    router: Router,
    places: Arc<Semaphore>,
    patience: Duration,
    open: GracefulShutdown,
}

impl Door {
    /// For as many connections at a time as there are `places`. A client that lets the server wait for longer than
    /// `patience`, for a request's head or for room to write to, is cut off; one that has sent nothing for so long,
    /// too.
    pub(crate) fn new(
        listener: TcpListener,
        router: Router,
        places: Arc<Semaphore>,
        patience: Duration,
    ) -> Self {
        Door {
            listener,
            router,
            places,
            patience,
            open: GracefulShutdown::new(),
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
                Ok((stream, _)) => self.begin(stream, place),
                Err(error) => {
                    tracing::warn!(%error, "a connection was not taken");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    fn begin(&self, stream: TcpStream, place: OwnedSemaphorePermit) {
        // Without it a stream's pieces wait for each other. Who has gone meanwhile is found out when he is read from.
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.patience));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.patience)
            .serve_connection(
                TokioIo::new(Box::pin(stream)),
                TowerToHyperService::new(self.router.clone()),
            );
        let connection = self.open.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection was cut off");
            }
            drop(place);
        });
    }

    /// Takes no more, closes those that are idle, and is there when the others have ended.
    pub(crate) async fn close(self) {
        let Door { listener, open, .. } = self;
        drop(listener);
        open.shutdown().await;
    }
}
