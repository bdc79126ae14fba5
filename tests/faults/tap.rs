//! A tap on a thread's system calls: each one of those asked for stops, and the test says what becomes of it.
//!
//! What lives here: [`tapped`], for faults of the operating system that nobody but it can make: the
//! library's own reads fail, are short, hang, or see a file that somebody changes in exactly that moment.
//! What does not: the faults (`files`, `limits`).
//!
//! How: seccomp's notifications. A filter on the thread sends the calls to the supervisor, which is the
//! test's own thread, and in the same address space. Needs no rights (`no_new_privs`), no other process and
//! nothing preloaded, and what is tapped is the code that ships. Where the system has no such notifications
//! (other systems; a sandbox without them), [`works`] says so, aloud.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use libc::{
    c_int, c_long, seccomp_data, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog,
};

/// A call that waits for an answer.
#[derive(Debug)]
pub struct Call {
    /// Which of all calls that were stopped, from 0.
    pub index: usize,
    pub number: c_long,
    /// Whose it is, as the system numbers threads.
    pub thread: u32,
    args: [u64; 6],
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel does it.
    Goes,
    /// It is not done; `errno`.
    Fails(c_int),
    /// It is not done; it says that so many bytes were read.
    Says(i64),
    /// Not yet: the test is asked about it again when the next call has stopped.
    Waits,
}

/// Longer than any thread takes to its next call.
const NEXT_CALL: c_int = 60_000;

impl Call {
    /// Does a `pread64` for the thread that waits, of at most `most` bytes: a short read.
    pub fn read_short(&self, most: usize) -> Answer {
        assert_eq!(self.number, libc::SYS_pread64);
        let [fd, buffer, len, offset, ..] = self.args;
        let len = (len as usize).min(most);
        // SAFETY: the buffer is the waiting thread's, which is this process's and stays where it is until
        // we answer; nobody else uses it meanwhile.
        let read =
            unsafe { libc::pread(fd as RawFd, buffer as *mut libc::c_void, len, offset as i64) };
        assert!(read >= 0, "{}", io::Error::last_os_error());
        Answer::Says(read as i64)
    }

    /// The file that a `pread64` reads.
    pub fn file(&self) -> PathBuf {
        assert_eq!(self.number, libc::SYS_pread64);
        fs::read_link(format!("/proc/self/fd/{}", self.args[0])).unwrap()
    }

    /// The bytes of the file that a `pread64` is asked for.
    pub fn range(&self) -> Range<u64> {
        assert_eq!(self.number, libc::SYS_pread64);
        let [_, _, len, offset, ..] = self.args;
        offset..offset + len
    }

    /// The flags of an `openat`.
    pub fn open_flags(&self) -> c_int {
        assert_eq!(self.number, libc::SYS_openat);
        self.args[2] as c_int
    }
}

/// Does this system, and this build, have what the tap needs?
pub fn works() -> bool {
    if cfg!(weighbridge_asan) {
        // Its allocator maps memory under a lock: a mapping that waits for our answer has the lock that we
        // need to answer, and one that is refused ends the process.
        not_run("AddressSanitizer's own calls would be tapped");
        return false;
    }
    let tried = thread::spawn(|| install(&[libc::SYS_getppid]).map(drop))
        .join()
        .unwrap();
    if let Err(error) = &tried {
        // Not a failure of the library's: on its own this is no reason to turn a machine down.
        not_run(&format!("no seccomp notifications here: {error}"));
    }
    tried.is_ok()
}

/// Says, where it is seen, that a test tests nothing here, and why. (What `eprintln` says in a test that
/// passes is not seen.)
pub fn not_run(why: &str) {
    let said = format!("NOT RUN: {why}\n");
    std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes()).unwrap();
}

/// Runs `act` on a thread of its own, on what `prepare` made there, with `calls` tapped; the calling thread
/// answers. (What `act` starts other threads for is tapped as well.)
pub fn tapped<P, R: Send>(
    calls: &[c_long],
    prepare: impl FnOnce() -> P + Send,
    act: impl FnOnce(P) -> R + Send,
    mut answer: impl FnMut(&Call) -> Answer,
) -> R {
    let (send, listener) = mpsc::channel();
    thread::scope(|scope| {
        let acting = scope.spawn(move || {
            let prepared = prepare();
            send.send(install(calls).expect("see `works`")).unwrap();
            act(prepared)
        });
        let listener = listener.recv().expect("the tap was not installed");
        let mut index = 0;
        // The last that came is the first here, so that what others wait for is seen before they are looked at.
        let mut stopped: VecDeque<(u64, Call)> = VecDeque::new();
        while let Some(notice) = next(&listener, !stopped.is_empty()) {
            let data = notice.data;
            let call = Call {
                index,
                number: c_long::from(data.nr),
                thread: notice.pid,
                args: data.args,
            };
            stopped.push_front((notice.id, call));
            stopped.retain(|(id, call)| match answer(call) {
                Answer::Waits => true,
                answer => {
                    respond(&listener, *id, answer);
                    false
                }
            });
            index += 1;
        }
        acting
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn checked(answer: c_long) -> io::Result<c_long> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

/// A filter on the calling thread that sends `calls` to the descriptor that it returns.
fn install(calls: &[c_long]) -> io::Result<OwnedFd> {
    let number = offset_of!(seccomp_data, nr) as u32;
    let instruction = |code: u32, k: u32, jt: u8| sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    let mut program = vec![instruction(
        libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
        number,
        0,
    )];
    for (at, &call) in calls.iter().enumerate() {
        // On a match, on to the last instruction.
        let past = (calls.len() - at) as u8;
        program.push(instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            call as u32,
            past,
        ));
    }
    program.push(instruction(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_ALLOW,
        0,
    ));
    program.push(instruction(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_USER_NOTIF,
        0,
    ));
    let program = sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain numbers; says that this thread will never gain rights by running another program.
    checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }.into())?;
    let (operation, flag) = (
        libc::SECCOMP_SET_MODE_FILTER,
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
    );
    // SAFETY: `program` and what it points to outlive the call, which copies them.
    let listener =
        checked(unsafe { libc::syscall(libc::SYS_seccomp, operation, flag, &raw const program) })?;
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// The next call that waits; `None` when the last thread with the filter has ended. `waited_for`: by others that
/// are stopped, so it has to come.
fn next(listener: &OwnedFd, waited_for: bool) -> Option<seccomp_notif> {
    let mut ready = libc::pollfd {
        fd: listener.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let patience = if waited_for { NEXT_CALL } else { -1 };
    loop {
        // SAFETY: one entry, as said.
        match unsafe { libc::poll(&raw mut ready, 1, patience) } {
            0 => panic!("calls wait for one that does not come"),
            1.. => break,
            _ => assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EINTR)),
        }
    }
    if ready.revents & libc::POLLIN == 0 {
        return None;
    }
    // SAFETY: all of it may be zero, and must be.
    let mut notice: seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `seccomp_notif`.
    let received = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut notice,
        )
    };
    checked(received.into()).expect("a call that waits");
    Some(notice)
}

fn respond(listener: &OwnedFd, id: u64, answer: Answer) {
    let (val, error, flags) = match answer {
        Answer::Goes => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
        Answer::Fails(errno) => (0, -errno, 0),
        Answer::Says(count) => (count, 0, 0),
        Answer::Waits => unreachable!("it is answered later"),
    };
    let mut response = seccomp_notif_resp {
        id,
        val,
        error,
        flags,
    };
    const { assert!(size_of::<seccomp_notif_resp>() == 24) }
    // SAFETY: the kernel reads one `seccomp_notif_resp`.
    let sent = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut response,
        )
    };
    checked(sent.into()).expect("somebody waits for this answer");
}
