//! `criu swrk`: one CRIU process of our own, spoken to over a socket pair.
//!
//! CRIU learns our pid from the socket and opens the descriptors we name as `/proc/<our pid>/fd/<n>`, so they stay open
//! here. When the socket closes while it works, it lets go of everything in good order and ends.

use std::{
    ffi::OsStr,
    io::Read,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair},
};
use prost::Message;
use rustix::fs::{OFlags, fcntl_setfl};

use crate::{
    criu::rpc::{Kind, Request, Response},
    error::{At, Error, Result},
    freeze::{
        netlock::search_path,
        recover::{GRACE, Watched},
    },
    host::shield,
    interrupt,
};

/// The descriptor under which CRIU finds its end of the pair.
const CHILD_FD: i32 = 3;

/// A POSIX shell.
const SHELL: &str = "/bin/sh";

/// How often we look whether the user has interrupted us, in milliseconds.
const TICK: u8 = 100;

/// An answer has a version, features or one error line; more is no answer of CRIU.
const MAX_MESSAGE: usize = 1 << 20;

/// How much of its stderr is kept: what it says before its log is open.
const MAX_SAID: usize = 16 << 10;

/// A running `criu swrk`. Dropped, it is ended.
#[derive(Debug)]
pub struct Swrk {
    child: Child,
    /// Its end is seen here: the socket may outlive it in the hands of a helper.
    watched: Option<Watched>,
    socket: Option<OwnedFd>,
    /// It has answered, and so ends by itself.
    answered: bool,
    stderr: Option<ChildStderr>,
    said: Vec<u8>,
}

/// How a `criu swrk` ended.
#[derive(Debug)]
pub struct Ended {
    /// It ended by itself, so what it had changed it has changed back.
    pub in_order: bool,
    /// In words, for an error.
    pub how: String,
    /// What it wrote to stderr.
    pub said: String,
}

impl Swrk {
    /// Starts one.
    pub fn start(program: &Path) -> Result<Self> {
        Self::spawn(program, Command::new(program))
    }

    /// Starts one that survives a write beyond its limit of file size: it is then told to give up by such a limit (see
    /// [`Watched::end`]), and must end in good order, not of the signal. Without a shell it is started as any other.
    pub fn start_steady(program: &Path) -> Result<Self> {
        if !Path::new(SHELL).exists() {
            return Self::start(program);
        }
        let mut command = Command::new(SHELL);
        // What is ignored stays so in the program that takes the shell's place.
        command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(program);
        Self::spawn(program, command)
    }

    fn spawn(program: &Path, mut command: Command) -> Result<Self> {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (ours, theirs) = pair.at("make a socket for", program)?;
        command.args(["swrk", &CHILD_FD.to_string()]).env("PATH", search_path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A Ctrl-C on our terminal is for us: CRIU, hit by it, could not let go of the tasks in good order.
        command.process_group(0);
        let mapping = FdMapping { parent_fd: theirs, child_fd: CHILD_FD };
        command.fd_mappings(vec![mapping]).map_err(std::io::Error::other).at("pass a socket to", program)?;
        // `command` owns our copy of CRIU's end and goes there: from now on the end of CRIU is the end of the stream.
        let started = shield::outside(move || command.spawn());
        let mut child = started.map_err(|e| cannot_start(program, e))?;
        let stderr = child.stderr.take();
        if let Some(stderr) = &stderr {
            fcntl_setfl(stderr, OFlags::NONBLOCK).at("listen to", program)?;
        }
        let watched = Watched::pid(child.id().cast_signed());
        Ok(Self { child, watched, socket: Some(ours), answered: false, stderr, said: Vec::new() })
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends a request and returns the answer; `None` if CRIU ended without one. CRIU waits at each notification
    /// until `on_notify` returns; an error of it aborts the dump, and comes back once CRIU has let go.
    pub fn ask(
        &mut self,
        request: &Request,
        on_notify: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Option<Response>> {
        let mut refused = None;
        if !self.send(request)? {
            return Ok(None);
        }
        while let Some(answer) = self.receive()? {
            if answer.kind() != Kind::Notify {
                self.answered = true;
                return refused.map_or(Ok(Some(answer)), Err);
            }
            let script = answer.notify.and_then(|n| n.script).unwrap_or_default();
            let result = on_notify(&script);
            let reply =
                Request { kind: Kind::Notify.into(), notify_success: Some(result.is_ok()), ..Request::default() };
            refused = refused.or(result.err());
            if !self.send(&reply)? {
                break;
            }
        }
        refused.map_or(Ok(None), Err)
    }

    /// False: nobody is there to hear it.
    fn send(&self, request: &Request) -> Result<bool> {
        let Some(socket) = &self.socket else { return Ok(false) };
        match send(socket.as_raw_fd(), &request.encode_to_vec(), MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(false),
            Err(e) => Err(e).at("write to", "the socket of CRIU"),
        }
    }

    /// The next message; `None` at the end of the stream.
    fn receive(&mut self) -> Result<Option<Response>> {
        self.wait_message()?;
        let Some(socket) = &self.socket else { return Ok(None) };
        match whole_message(socket) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => Response::decode(&bytes[..]).map(Some).map_err(|e| Error::malformed("the answer of CRIU", e)),
            Err(Errno::ECONNRESET | Errno::EAGAIN) => Ok(None),
            Err(e) => Err(e).at("read from", "the socket of CRIU"),
        }
    }

    fn wait_message(&mut self) -> Result<()> {
        loop {
            interrupt::check()?;
            let Some(socket) = &self.socket else { return Ok(()) };
            let stderr = self.stderr.as_ref().map(AsFd::as_fd);
            let others = self.watched.as_ref().map(AsFd::as_fd).into_iter().chain(stderr);
            let fds = [socket.as_fd()].into_iter().chain(others);
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, TICK) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).at("wait for", "the socket of CRIU"),
            }
            // Ready, or CRIU has ended: what it said before stands in the socket, and else there is nothing.
            let has = |at: usize| fds.get(at).and_then(PollFd::any) == Some(true);
            let is_ready = has(0) || self.watched.is_some() && has(1);
            self.listen();
            if is_ready {
                return Ok(());
            }
        }
    }

    /// Takes what is on stderr, so that CRIU never waits for a full pipe.
    fn listen(&mut self) {
        let Some(stderr) = &mut self.stderr else { return };
        let mut buf = [0; 4096];
        loop {
            match stderr.read(&mut buf) {
                Ok(n) if n > 0 => {
                    let room = MAX_SAID.saturating_sub(self.said.len());
                    self.said.extend_from_slice(&buf[..n.min(room)]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                // Closed: asked no more, for it would always be ready.
                _ => return self.stderr = None,
            }
        }
    }

    /// Closes the socket and sees to its end: by itself within [`GRACE`], else killed.
    pub fn end(mut self) -> Ended {
        let status = self.reap();
        self.listen();
        let how = match status {
            Some(status) => format!("it ended without an answer ({status})"),
            None => "it ended without an answer".into(),
        };
        let said = String::from_utf8_lossy(&self.said).into_owned();
        Ended { in_order: status.is_some_and(|s| s.code().is_some()), how, said }
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        self.socket = None;
        match &self.watched {
            // Before it is reaped, so that pid and process group are certainly its own.
            Some(watched) => {
                let _ = self.answered && watched.ends_within(GRACE);
                watched.end();
            }
            None => wait(&mut self.child, GRACE),
        }
        let _ = self.child.kill();
        self.child.wait().ok()
    }
}

/// For kernels without pidfds (before 5.3).
fn wait(child: &mut Child, limit: Duration) {
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && start.elapsed() < limit {
        thread::sleep(Duration::from_millis(1));
    }
}

impl Drop for Swrk {
    fn drop(&mut self) {
        if self.socket.is_some() {
            self.reap();
        }
    }
}

/// One datagram, however long it is.
fn whole_message(socket: &OwnedFd) -> nix::Result<Vec<u8>> {
    let len = recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT)?;
    if len > MAX_MESSAGE {
        return Err(Errno::EMSGSIZE);
    }
    let mut bytes = vec![0; len];
    let len = recv(socket.as_raw_fd(), &mut bytes, MsgFlags::empty())?;
    bytes.truncate(len);
    Ok(bytes)
}

fn cannot_start(program: &Path, e: std::io::Error) -> Error {
    if e.kind() != std::io::ErrorKind::NotFound {
        return Error::Io { verb: "start", path: program.to_owned(), source: e };
    }
    let is_name = program.parent().is_some_and(|dir| dir.as_os_str() == OsStr::new(""));
    let place = if is_name { " in PATH" } else { "" };
    Error::NotFound {
        what: format!("the program {}{place}, which dumps memory,", program.display()),
        hint: "install it (apt install criu, dnf install criu), or name it with --criu PATH".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stand_in(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in").join(name)
    }

    fn version() -> Request {
        Request { kind: Kind::Version.into(), ..Request::default() }
    }

    /// A `Swrk` whose other end is ours: the test plays CRIU.
    fn played(script: impl FnOnce(OwnedFd) + Send + 'static) -> (Swrk, thread::JoinHandle<()>) {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let child = Command::new("true").spawn().unwrap();
        let swrk = Swrk { child, watched: None, socket: Some(ours), answered: false, stderr: None, said: Vec::new() };
        (swrk, thread::spawn(move || script(theirs)))
    }

    fn say(socket: &OwnedFd, answer: &Response) {
        send(socket.as_raw_fd(), &answer.encode_to_vec(), MsgFlags::empty()).unwrap();
    }

    fn hear(socket: &OwnedFd) -> Request {
        poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], 5000_u16).unwrap();
        Request::decode(&whole_message(socket).unwrap()[..]).unwrap()
    }

    fn notify(script: &str) -> Response {
        let notify = Some(crate::criu::rpc::Notify { script: Some(script.into()) });
        Response { kind: Kind::Notify.into(), success: true, notify, ..Response::default() }
    }

    #[test]
    fn each_notification_is_answered_and_the_final_answer_returned() {
        let (mut swrk, criu) = played(|socket| {
            assert_eq!(hear(&socket).kind(), Kind::Dump);
            for script in ["pre-dump", "post-dump"] {
                say(&socket, &notify(script));
                assert_eq!(hear(&socket).notify_success, Some(true));
            }
            let long = Some("x".repeat(100_000));
            say(&socket, &Response { kind: Kind::Dump.into(), success: true, cr_errmsg: long, ..Response::default() });
        });
        let mut scripts = Vec::new();
        let request = Request { kind: Kind::Dump.into(), ..Request::default() };
        let answer = swrk.ask(&request, &mut |s| {
            scripts.push(s.to_owned());
            Ok(())
        });
        assert_eq!(answer.unwrap().unwrap().cr_errmsg.unwrap().len(), 100_000);
        assert_eq!(scripts, ["pre-dump", "post-dump"]);
        criu.join().unwrap();
    }

    #[test]
    fn a_refused_notification_aborts_the_dump_and_its_reason_comes_back() {
        let (mut swrk, criu) = played(|socket| {
            hear(&socket);
            say(&socket, &notify("post-dump"));
            assert_eq!(hear(&socket).notify_success, Some(false));
            say(&socket, &Response { kind: Kind::Dump.into(), success: false, ..Response::default() });
        });
        let answer = swrk.ask(&version(), &mut |_| Err(Error::Interrupted));
        assert!(matches!(answer, Err(Error::Interrupted)));
        criu.join().unwrap();
    }

    #[test]
    fn the_end_of_criu_is_no_answer_and_garbage_is_an_error() {
        let (mut swrk, criu) = played(|socket| drop(hear(&socket)));
        assert!(swrk.ask(&version(), &mut |_| Ok(())).unwrap().is_none());
        criu.join().unwrap();
        let (mut swrk, criu) = played(|socket| {
            hear(&socket);
            send(socket.as_raw_fd(), b"\xff\xff", MsgFlags::empty()).unwrap();
        });
        assert!(swrk.ask(&version(), &mut |_| Ok(())).is_err());
        criu.join().unwrap();
    }

    #[test]
    fn a_criu_that_fails_at_once_is_quoted() {
        let mut swrk = Swrk::start(&stand_in("criu-fails")).unwrap();
        assert!(swrk.ask(&version(), &mut |_| Ok(())).unwrap().is_none());
        let ended = swrk.end();
        assert!(ended.in_order && ended.how.contains('3'), "{ended:?}");
        assert_eq!(ended.said, "libnet.so.1: cannot open shared object file\n");
    }

    #[test]
    fn a_criu_that_does_not_end_is_killed() {
        let swrk = Swrk::start(&stand_in("criu-hangs")).unwrap();
        let start = Instant::now();
        assert!(!swrk.end().in_order);
        assert!(start.elapsed() >= GRACE && start.elapsed() < GRACE * 3);
    }

    #[test]
    fn a_helper_that_outlives_criu_neither_keeps_us_waiting_nor_stays() {
        let mut swrk = Swrk::start(&stand_in("criu-dies")).unwrap();
        let group = nix::unistd::Pid::from_raw(-swrk.pid());
        assert!(swrk.ask(&version(), &mut |_| Ok(())).unwrap().is_none());
        assert!(!swrk.end().in_order);
        let start = Instant::now();
        // A killed helper is seen until its new parent has reaped it.
        while nix::sys::signal::kill(group, None).is_ok() && start.elapsed() < GRACE * 10 {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(start.elapsed() < GRACE * 10);
    }

    #[test]
    fn an_absent_criu_is_explained() {
        let error = Swrk::start(Path::new("no-such-criu")).unwrap_err().to_string();
        assert!(error.contains("no-such-criu in PATH") && error.contains("--criu"), "{error}");
    }
}
