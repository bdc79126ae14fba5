//! From options to a server that answers, and to its end.
//!
//! What lives here: [`Server`]. What does not: what it answers (`http`), what it computes (`engine`).

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::sync::{Semaphore, watch};
use weighbridge::WeightRegistry;
use weighbridge_scheduler::{Limits, Scheduler};

use crate::adapters::Adapters;
use crate::built_in::BuiltIn;
use crate::counters::Counters;
use crate::engine::Engine;
use crate::error::StartError;
use crate::http::{self, App, Door, LOADS, Splitters};
use crate::options::Options;
use crate::world::World;

/// How long clients are given at the end to read what they were told.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A model that is loaded, and an address that is taken.
pub struct Server {
    app: Arc<App>,
    engine: Engine,
    listener: std::net::TcpListener,
    address: SocketAddr,
    // Last: what was loaded from there is gone then.
    _built_in: Option<BuiltIn>,
}

impl Server {
    /// Loads the model and the adapters, starts the thread that computes, and takes the address. Nobody is answered
    /// yet.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn open(options: Options) -> Result<Self, StartError> {
        let (built_in, options) = match &options.model {
            Some(_) => (None, options),
            None => {
                let built_in = BuiltIn::unpack()?;
                let options = built_in.of(&options);
                (Some(built_in), options)
            }
        };
        options.check()?;
        // Before the registry counts anything.
        let recorder = http::recorder();
        let limits = Limits::default()
            .running(options.running)
            .adapters(options.running_adapters)
            .waiting(options.waiting);
        let world = Arc::new(World::open(&options)?);
        let scheduler = Scheduler::new(Arc::clone(&world.registry), limits);
        let scheduler = Arc::new(scheduler.map_err(|error| StartError::Option {
            option: "--running, --running-adapters or --waiting",
            reason: error.to_string(),
        })?);
        let adapters = Adapters::new(Arc::clone(&world), &options)?;
        let taken = |source| StartError::Address {
            address: options.listen,
            source,
        };
        let listener = listen(options.listen).map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        listener.set_nonblocking(true).map_err(taken)?;
        let counters = Arc::new(Counters::default());
        let engine = Engine::start(
            Arc::clone(&world),
            Arc::clone(&scheduler),
            Arc::clone(&counters),
        );
        let engine = engine.map_err(StartError::System)?;
        let splitters = Splitters::new(
            &world.tokenizer,
            world.model.config().max_position_embeddings,
            options.waiting,
        );
        let app = Arc::new(App {
            world,
            adapters,
            scheduler,
            counters,
            recorder,
            connections: Arc::default(),
            cut: watch::Sender::new(false),
            splitters,
            loads: Semaphore::new(LOADS),
            options,
            asked: AtomicU64::new(0),
        });
        Ok(Server {
            app,
            engine,
            listener,
            address,
            _built_in: built_in,
        })
    }

    /// What the model is called in requests.
    pub fn model(&self) -> &str {
        &self.app.world.name
    }

    /// Where it listens: the port that was given, if it was asked for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The registry, to look at it or to change adapters from the same process.
    pub fn registry(&self) -> Arc<WeightRegistry> {
        Arc::clone(&self.app.world.registry)
    }

    /// Answers until `until` is there. Then nobody new is answered, those that are being answered are given the
    /// grace of the options, and what is left is cut off with an error.
    ///
    /// # Errors
    /// [`StartError::System`] if the system gives no runtime; [`StartError::Address`] if it cannot be listened to.
    pub fn run(
        mut self,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(StartError::System)?;
        let grace = Duration::from_secs(self.app.options.grace);
        let address = self.address;
        let app = Arc::clone(&self.app);
        let answered = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let router = http::router(Arc::clone(&app));
            let door = Door::new(
                listener,
                router,
                places(app.options.connections),
                Arc::clone(&app.connections),
                app.patience(),
            );
            tokio::select! {
                never = door.let_in() => match never {},
                () = until => {}
            }
            // No connection is taken any more, idle ones are closed, and what is under way has its grace.
            let mut closing = std::pin::pin!(door.close());
            if tokio::time::timeout(grace, &mut closing).await.is_ok() {
                return Ok(None);
            }
            // What is left is told that it is cut off, and so is whoever comes now on a connection that is open. Not on a
            // thread of the runtime's: those may all be busy, and the engine ends its step first.
            let stopped = std::thread::Builder::new().spawn(move || self.engine.stop())?;
            app.cut.send_replace(true);
            // Time to read it.
            let _ = tokio::time::timeout(LAST_WORDS, closing).await;
            Ok(Some(stopped))
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        let stopped = answered.map_err(|source| StartError::Address { address, source })?;
        // At most a step of the model. It does not panic.
        let _ = stopped.map(|stopped| stopped.join());
        Ok(())
    }
}

/// With a longer queue than std's, for clients that come all at once.
fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    const QUEUE: i32 = 1024;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // As std does: a server that starts again need not wait until the system has forgotten the last one's connections.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(QUEUE)?;
    Ok(socket.into())
}

/// As many connections as the options say, or as the process may have descriptors for: each takes two, and some are kept
/// for the files of adapters.
fn places(wanted: usize) -> usize {
    #[cfg(unix)]
    {
        const KEPT: u64 = 128;
        let may = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let may = may.map_or(u64::MAX, |may| may.saturating_sub(KEPT) / 2);
        let may = usize::try_from(may).unwrap_or(usize::MAX).max(1);
        if may < wanted {
            tracing::warn!(
                wanted,
                may,
                "fewer connections than wanted: the limit of open files is in the way"
            );
            return may;
        }
    }
    wanted
}
