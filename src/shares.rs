//! Work shared among the cores. On a machine that has no thread to give, the caller does all of it.

use std::{
    panic::resume_unwind,
    thread::{self, Builder},
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
}
