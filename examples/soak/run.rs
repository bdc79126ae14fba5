//! The run: threads that live and end, and the meetings in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use weighbridge::Error;

use crate::acts;
use crate::meeting;
use crate::mirror::Mirror;
use crate::options::Options;
use crate::process;
use crate::report::{self, Point};
use crate::warm::warm;
use crate::watchdog::Watchdog;
use crate::worker::Worker;
use crate::world::{World, bump};

/// Tells that a thread is about to end, also by a panic.
struct Ended(Sender<usize>, usize);

impl Drop for Ended {
    fn drop(&mut self) {
        // Nobody listens any more during a meeting.
        let _ = self.0.send(self.1);
    }
}

/// One thread's life; the worker goes on in the next thread.
fn begin(mut worker: Worker, ended: Sender<usize>) -> JoinHandle<Worker> {
    thread::spawn(move || {
        let _ended = Ended(ended, worker.seat);
        bump(&worker.world.counts.lives);
        worker.live();
        worker
    })
}

/// Waits for a thread that is ending.
fn finish(world: &Arc<World>, seat: usize, thread: JoinHandle<Worker>) -> Worker {
    thread.join().unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied());
        world.fail(format!("thread {seat} panicked: {text:?}"));
        world.doing[seat].end();
        Worker::new(seat, Arc::clone(world))
    })
}

/// Lets everybody work until `until`; then all threads have ended.
fn work(world: &Arc<World>, workers: Vec<Worker>, until: Instant) -> Vec<Worker> {
    let (bell, ended) = mpsc::channel();
    world.stop.store(false, Ordering::Relaxed);
    let living = workers.into_iter();
    let mut living: Vec<Option<JoinHandle<Worker>>> = living
        .map(|worker| Some(begin(worker, bell.clone())))
        .collect();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match ended.recv_timeout(left) {
            Ok(seat) => {
                let Some(thread) = living[seat].take() else {
                    continue;
                };
                let worker = finish(world, seat, thread);
                living[seat] = Some(begin(worker, bell.clone()));
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    let threads = living.into_iter().flatten().enumerate();
    threads
        .map(|(seat, thread)| finish(world, seat, thread))
        .collect()
}

/// Time between meetings.
fn interval(options: &Options) -> Duration {
    (options.time / 120).clamp(Duration::from_millis(500), Duration::from_secs(30))
}

/// Everything; whether all of it was as it must be.
pub fn run(options: Options) -> Result<bool, Error> {
    let files = acts::foresee()?;
    if acts::drawn(&options.only).is_empty() {
        println!("no operation has that in its name");
        return Ok(false);
    }
    let (threads, descriptors) = (process::threads(), process::files());
    let world = Arc::new(World::new(options.clone(), files)?);
    warm(&world)?;
    let mirror = Mirror::start(&world);
    let watchdog = Watchdog::start(Arc::clone(&world));
    println!(
        "soak: {:?} on {} threads, a meeting every {:?}, seed {}",
        options.time,
        options.threads,
        interval(&options),
        options.seed
    );
    report::head();
    let mut workers: Vec<Worker> = (0..options.threads)
        .map(|seat| Worker::new(seat, Arc::clone(&world)))
        .collect();
    let mut points: Vec<Point> = Vec::with_capacity(1024);
    let mut last = false;
    while !last {
        workers = work(&world, workers, Instant::now() + interval(&options));
        // Whatever the meetings take, there is one at the end.
        last = world.started.elapsed() >= options.time;
        let doing = &world.doing[options.threads];
        doing.begin("a meeting", meeting::ALLOWED);
        let count = meeting::count(&world, &workers, &mirror);
        // At every second one everything goes; in between leases outlive the meeting.
        let clears = last || points.len() % 2 == 1;
        let sample = clears.then(|| {
            meeting::clear(&world, &mut workers, &mirror);
            meeting::sample(&world)
        });
        doing.end();
        let at = world.started.elapsed();
        points.push(Point { at, count, sample });
        report::line(&world, &points[points.len() - 1]);
    }
    drop(workers);
    watchdog.end();
    let growth = report::figures(&world, &points);
    let failures = world.failures();
    let leftover = close(world, mirror, threads.as_deref(), descriptors.as_deref());
    Ok(report::verdict(&failures, &points, growth, &leftover))
}

/// The registry goes; what is still there that was not there at the start.
fn close(
    world: Arc<World>,
    mirror: Mirror,
    threads: Option<&[String]>,
    descriptors: Option<&[String]>,
) -> Vec<String> {
    let mut leftover = Vec::new();
    match Arc::try_unwrap(world) {
        Ok(world) => drop(world),
        Err(world) => leftover.push(format!("{} hold the world", Arc::strong_count(&world))),
    }
    match mirror.end() {
        Some(last) if last.blind || last.is_empty() => {}
        last => leftover.push(format!("the events ended with {last:?}")),
    }
    for (what, before, now) in [
        ("threads", threads, process::threads()),
        ("files", descriptors, process::files()),
    ] {
        if before != now.as_deref() {
            leftover.push(format!("{what} were {before:?} and are {now:?}"));
        }
    }
    leftover
}
