//! Work on more than one thread: shared among the cores, beside the caller, or apart. On a machine that has no thread to
//! give, the caller does all of it, but what needs a thread of its own.

use std::{
    io,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, Builder, Scope, ScopedJoinHandle},
};

/// How many parts keep every core at work.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// What `work` makes of each part, in their order; the first is the caller's own. A panic in one of them is the caller's.
pub fn of<P: Sync, T: Send>(parts: &[P], work: impl Fn(&P) -> T + Sync) -> Vec<T> {
    with(parts, work, |builder| builder)
}

fn with<P: Sync, T: Send>(parts: &[P], work: impl Fn(&P) -> T + Sync, thread: impl Fn(Builder) -> Builder) -> Vec<T> {
    let Some((first, others)) = parts.split_first() else { return Vec::new() };
    let work = &work;
    thread::scope(|scope| {
        let begin = |part| (part, thread(Builder::new()).spawn_scoped(scope, move || work(part)));
        let begun: Vec<_> = others.iter().map(begin).collect();
        let own = work(first);
        let rest = begun.into_iter().map(|(part, thread)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => work(part),
        });
        std::iter::once(own).chain(rest).collect()
    })
}

/// Work that goes on beside the caller's.
pub enum Beside<'s, T> {
    /// On a thread of its own.
    Thread(ScopedJoinHandle<'s, Option<T>>),
    /// By the caller, when it asks for what comes of it.
    Later(Box<dyn FnOnce() -> Option<T> + 's>),
}

/// Begins `work`, which may be done at any time before its result is asked for.
pub fn beside<'s, T: Send + 's>(scope: &'s Scope<'s, '_>, work: impl FnOnce() -> T + Send + 's) -> Beside<'s, T> {
    beside_with(scope, work, |builder| builder)
}

fn beside_with<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    work: impl FnOnce() -> T + Send + 's,
    thread: impl Fn(Builder) -> Builder,
) -> Beside<'s, T> {
    // A thread that could not be started has dropped what it was given, so it is given a share of it.
    let work = Arc::new(Mutex::new(Some(work)));
    let take = |work: &Mutex<Option<_>>| work.lock().unwrap_or_else(PoisonError::into_inner).take();
    let given = work.clone();
    match thread(Builder::new()).spawn_scoped(scope, move || take(&given).map(|work| work())) {
        Ok(thread) => Beside::Thread(thread),
        Err(_) => Beside::Later(Box::new(move || take(&work).map(|work| work()))),
    }
}

impl<T> Beside<'_, T> {
    /// What comes of the work. A panic in it is the caller's.
    pub fn join(self) -> T {
        let done = match self {
            Self::Thread(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Self::Later(work) => work(),
        };
        done.expect("the work is taken by whoever does it, once")
    }
}

/// Does `work` on a thread of its own, for what it does to the thread, and waits for it.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let none = |e: io::Error| io::Error::new(e.kind(), format!("no thread starts (the limit of processes?): {e}"));
        let thread = Builder::new().spawn_scoped(scope, work).map_err(none)?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, thread};

    use super::*;

    #[test]
    fn every_part_is_done_in_order_with_threads_or_without() {
        let parts: Vec<u32> = (0..5).collect();
        let work = |part: &u32| (part * 7, thread::current().id());
        // No machine has room for such a stack.
        for (stack, threads) in [(1 << 20, 5), (1 << 60, 1)] {
            let done = with(&parts, work, |builder| builder.stack_size(stack));
            assert!(done.iter().map(|(made, _)| *made).eq((0..5).map(|part| part * 7)));
            assert_eq!(done.iter().map(|(_, id)| id).collect::<HashSet<_>>().len(), threads);
        }
        assert!(of(&[], work).is_empty());
    }

    #[test]
    fn work_beside_is_done_with_a_thread_or_without() {
        for (stack, is_other) in [(1 << 20, true), (1 << 60, false)] {
            let text = String::from("moved");
            let (text, id) = thread::scope(|scope| {
                let work = move || (text + " on", thread::current().id());
                beside_with(scope, work, |builder| builder.stack_size(stack)).join()
            });
            assert_eq!((text.as_str(), id != thread::current().id()), ("moved on", is_other));
        }
    }
}
