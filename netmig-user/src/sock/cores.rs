//! Work on many sockets, on all processors.
use std::{num::NonZero, thread};

/// A thread is not worth less.
const LEAST: usize = 64;

/// Gives each processor a part of `items` to `work` on, in the caller's namespaces, and what comes of the parts in their order.
///
/// # Panics
/// If `work` panics.
pub(super) fn parts<T: Sync, R: Send>(items: &[T], work: impl Fn(&[T]) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let count = cores.min(items.len() / LEAST).max(1);
    let (first, others) = items.split_at(items.len().div_ceil(count));
    thread::scope(|scope| {
        let work = &work;
        // A thread is in the namespaces of the one that starts it.
        let begun: Vec<_> = others
            .chunks(first.len().max(1))
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        let mut done = vec![work(first)];
        done.extend(begun.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        }));
        done
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once_and_in_order() {
        for count in [0, 1, LEAST, 3 * LEAST + 1, 1000] {
            let items: Vec<usize> = (0..count).collect();
            let done = parts(&items, |part| part.to_vec());
            assert!(count == 0 || done.iter().all(|part| !part.is_empty()));
            assert_eq!(done.concat(), items);
        }
    }
}
