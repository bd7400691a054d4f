//! The registers of held threads, by ptrace(2): seized, asked to stop, read, let go.
//!
//! ```text
//! v2   frozen ── seize, interrupt ──▶ stopped ── read, detach ──▶ frozen
//! v1   frozen ── seize, interrupt ── thaw ──▶ stopped ── freeze ── read, detach ──▶ frozen
//! ```
//! A v1 freezer holds a thread where no stop reaches it. Thawed, it stops before it runs an instruction of its own: both are
//! decided in the same place, on the way back to user space (kernel: `get_signal`). CRIU does the same (`seize.c`).
//!
//! All happens on a thread of our own, and tracees are a thread's: when it ends, by whatever means, the kernel lets all go,
//! and what was seized goes on as if nothing had been (ptrace(2), `PTRACE_SEIZE`).

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::{
    error::{At, Result},
    freeze::Frozen,
    runtime::CgroupVersion,
    shares,
};

/// How long all threads together may take to stop. They take microseconds, unless one waits for a device.
const STOP: Duration = Duration::from_secs(1);

/// The registers of one thread, as the kernel has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registers {
    /// `NT_PRSTATUS`.
    pub general: Vec<u8>,
    /// `NT_FPREGSET`; empty: of a thread that runs 32-bit code.
    pub float: Vec<u8>,
}

/// The registers of each thread, or why they are not known. After an error the container is not held.
pub type All = BTreeMap<i32, std::result::Result<Registers, String>>;

/// Reads the registers of the threads `tids` of the held container.
pub fn read(frozen: &Frozen, tids: &[i32]) -> Result<All> {
    let needs_thaw = frozen.task().cgroup_version == CgroupVersion::V1;
    if let Some(above) = frozen.frozen_above().filter(|_| needs_thaw) {
        let why = format!("the cgroup {} above it is frozen, and no thread of it can be stopped", above.display());
        return Ok(tids.iter().map(|&tid| (tid, Err(why.clone()))).collect());
    }
    let tracer = || -> Result<All> {
        let (mut traced, mut all) = seize(tids);
        if needs_thaw {
            frozen.thawed(|| wait(&mut traced))?;
        } else {
            wait(&mut traced);
        }
        for (tid, state) in &traced {
            all.insert(*tid, if *state == State::Running { Err(stuck()) } else { of_thread(*tid).map_err(said) });
        }
        traced.iter().for_each(|(tid, state)| detach(*tid, *state));
        Ok(all)
    };
    // Not our main thread: what could not be detached is when this one ends.
    shares::apart(tracer).at("read", "the registers")?
}

/// What a seized thread does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Stopped as it was asked to.
    Stopped,
    /// Stopped on the way to a signal, which it must get all the same.
    Before(Signal),
}

/// Seizes and interrupts; yields those that will stop, and why others will not.
fn seize(tids: &[i32]) -> (BTreeMap<i32, State>, All) {
    let (mut traced, mut refused) = (BTreeMap::new(), BTreeMap::new());
    for &tid in tids {
        let pid = Pid::from_raw(tid);
        match ptrace::seize(pid, Options::empty()).and_then(|()| ptrace::interrupt(pid)) {
            Ok(()) => drop(traced.insert(tid, State::Running)),
            Err(e) => drop(refused.insert(tid, Err(said(e)))),
        }
    }
    (traced, refused)
}

/// Until each has stopped or ended, or the time is over.
fn wait(traced: &mut BTreeMap<i32, State>) {
    let start = Instant::now();
    loop {
        let running: Vec<i32> = traced.iter().filter(|(_, s)| **s == State::Running).map(|(tid, _)| *tid).collect();
        if running.is_empty() || start.elapsed() > STOP {
            return;
        }
        for tid in running {
            match waitpid(Pid::from_raw(tid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::PtraceEvent(..)) => drop(traced.insert(tid, State::Stopped)),
                Ok(WaitStatus::Stopped(_, signal)) => drop(traced.insert(tid, State::Before(signal))),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD) => drop(traced.remove(&tid)),
                Ok(_) | Err(_) => {}
            }
        }
        thread::sleep(Duration::from_micros(50));
    }
}

/// One that has not stopped cannot be detached; the end of our thread does it.
fn detach(tid: i32, state: State) {
    let signal = if let State::Before(signal) = state { Some(signal) } else { None };
    if state != State::Running {
        let _ = ptrace::detach(Pid::from_raw(tid), signal);
    }
}

fn stuck() -> String {
    format!("it did not stop within {} s", STOP.as_secs())
}

fn said(e: Errno) -> String {
    match e {
        Errno::EPERM => "it may not be traced".into(),
        e => e.desc().to_owned(),
    }
}

#[cfg(target_arch = "x86_64")]
fn of_thread(tid: i32) -> nix::Result<Registers> {
    // `__USER_CS`: only code of 64 bits has floating point registers of this form (`arch/x86/kernel/ptrace.c`).
    const CODE64: u64 = 0x33;
    let pid = Pid::from_raw(tid);
    let r = ptrace::getregs(pid)?;
    let words = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ];
    let general = words.into_iter().flat_map(u64::to_le_bytes).collect();
    let float = if r.cs == CODE64 { float(pid)? } else { Vec::new() };
    Ok(Registers { general, float })
}

/// `struct user_i387_struct`: what FXSAVE stores.
#[cfg(target_arch = "x86_64")]
fn float(pid: Pid) -> nix::Result<Vec<u8>> {
    let f = ptrace::getregset::<ptrace::regset::NT_PRFPREG>(pid)?;
    let mut out: Vec<u8> = [f.cwd, f.swd, f.ftw, f.fop].into_iter().flat_map(u16::to_le_bytes).collect();
    out.extend([f.rip, f.rdp].into_iter().flat_map(u64::to_le_bytes));
    let words = [f.mxcsr, f.mxcr_mask].into_iter().chain(f.st_space).chain(f.xmm_space);
    out.extend(words.flat_map(u32::to_le_bytes));
    // `sizeof (struct user_i387_struct)`; the end is unused.
    out.resize(512, 0);
    Ok(out)
}

#[cfg(target_arch = "aarch64")]
fn of_thread(tid: i32) -> nix::Result<Registers> {
    let pid = Pid::from_raw(tid);
    let r = ptrace::getregs(pid)?;
    let general = r.regs.into_iter().chain([r.sp, r.pc, r.pstate]).flat_map(u64::to_le_bytes).collect();
    // `PSR_MODE32_BIT`: its floating point registers have another form.
    if r.pstate & 0x10 != 0 {
        return Ok(Registers { general, float: Vec::new() });
    }
    let f = ptrace::getregset::<ptrace::regset::NT_PRFPREG>(pid)?;
    let mut float: Vec<u8> = f.vregs.into_iter().flat_map(u128::to_le_bytes).collect();
    float.extend([f.fpsr, f.fpcr].into_iter().flat_map(u32::to_le_bytes));
    // `sizeof (struct user_fpsimd_state)`.
    float.resize(528, 0);
    Ok(Registers { general, float })
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn of_thread(_tid: i32) -> nix::Result<Registers> {
    Err(Errno::ENOSYS)
}

/// Registers of which only two are known; the others stand there as zeros.
#[cfg(target_arch = "x86_64")]
pub fn of_pointers(sp: u64, pc: u64) -> Vec<u8> {
    let mut words = [0_u64; 27];
    (words[16], words[19]) = (pc, sp);
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// Registers of which only two are known; the others stand there as zeros.
#[cfg(not(target_arch = "x86_64"))]
pub fn of_pointers(sp: u64, pc: u64) -> Vec<u8> {
    let words = std::iter::repeat_n(0, 31).chain([sp, pc, 0]);
    words.flat_map(u64::to_le_bytes).collect()
}

/// `EM_*` of this machine; 0: of one whose cores we cannot write.
pub const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else {
    0
};

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Not frozen, so that no lab is needed: a v2 freezer changes nothing in this.
    #[test]
    fn a_process_is_stopped_read_and_goes_on() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let tid = child.id().cast_signed();
        let all = thread::spawn(move || {
            let (mut traced, refused) = seize(&[tid, i32::MAX]);
            assert!(refused[&i32::MAX].is_err());
            wait(&mut traced);
            assert_eq!(traced[&tid], State::Stopped);
            let registers = of_thread(tid).unwrap();
            detach(tid, traced[&tid]);
            registers
        });
        let registers = all.join().unwrap();
        if cfg!(target_arch = "x86_64") {
            assert_eq!((registers.general.len(), registers.float.len()), (216, 512));
            let word = |n: usize| u64::from_le_bytes(registers.general[n * 8..n * 8 + 8].try_into().unwrap());
            // In read(2), or before the first: in user space either way.
            assert!(word(16) != 0 && word(17) == 0x33 && word(19) > 0x1000);
        }
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success(), "it went on to its end");
    }
}
