//! How many machines run side by side.

use crate::host::{cores, memory};

/// A machine is one busy thread and what its guest has written to its RAM: a quarter of a gigabyte for most, and never
/// more than all of it.
pub(crate) fn jobs(sizes: Vec<u64>) -> usize {
    let available_mib = memory::available_bytes().map_or(0, |bytes| bytes >> 20);
    cores().min(fitting(sizes, available_mib)).max(1)
}

/// How many machines of these sizes fit in what is available, whichever of them run at once.
fn fitting(mut sizes: Vec<u64>, available: u64) -> usize {
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let sums = sizes.into_iter().scan(0_u64, |sum, size| {
        *sum += size;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= available).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_machines_may_run_at_once() {
        let small = vec![512; 10];
        let mixed = [vec![2048, 1024], small.clone()].concat();
        let cases = [
            (small.clone(), 5120, 10),
            (small.clone(), 1100, 2),
            (small, 100, 0),
            (mixed.clone(), 2047, 0),
            (mixed.clone(), 3071, 1),
            (mixed.clone(), 3072, 2),
            (mixed, 3072 + 1024, 4),
        ];
        for (sizes, available, expected) in cases {
            assert_eq!(fitting(sizes.clone(), available), expected, "{sizes:?} in {available}");
        }
    }
}
