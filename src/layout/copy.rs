//! Copying from file to file by the kernel, which shares the blocks where the file system can (btrfs, XFS: reflinks); and
//! hashing what was copied, on another core.

use std::{fs::File, io, os::unix::fs::FileExt, sync::mpsc, thread};

use rustix::{
    fs::{copy_file_range, ioctl_ficlone},
    io::Errno,
};

use crate::{
    digest::{Digest, Hasher},
    interrupt, shares, tally,
};

/// What is copied between two looks at the world.
const STRETCH: u64 = 32 << 20;

/// What is read at once, small enough to be hashed while it is in a processor's cache.
pub(super) const PIECE: usize = 256 << 10;

/// Makes `to`, which is empty, the same as `from`, and yields digest and size of `to`: whatever becomes of `from`, they
/// are right. `from` is only read; a hard link would change its inode, and leave it in other people's hands.
pub(super) fn whole(from: &File, to: &File) -> io::Result<(Digest, u64)> {
    let is_shared = ioctl_ficlone(to, from).is_ok();
    let size = if is_shared { to.metadata() } else { from.metadata() }?.len();
    thread::scope(|scope| {
        let (tell, copied) = mpsc::channel();
        let hashed = shares::beside(scope, || hash_behind(to, <_>::default(), copied));
        if is_shared {
            let _ = tell.send(size);
        } else {
            // Should nobody listen, the reason is said below.
            range(from, to, 0, size, &mut |end| _ = tell.send(end))?;
        }
        drop(tell);
        hashed.join().map(|digest| (digest, size))
    })
}

/// Copies `len` bytes from the beginning of `from` to `at` in `to`; calls `told` with the offset up to which they are there.
pub(super) fn range(from: &File, to: &File, at: u64, len: u64, told: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        interrupt::check().map_err(io::Error::other)?;
        let stretch = (len - done).min(STRETCH);
        copy(from, done, to, at + done, stretch)?;
        done += stretch;
        told(at + done);
    }
    Ok(())
}

/// By hand where the kernel cannot.
fn copy(from: &File, at: u64, to: &File, to_at: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let (mut source, mut target) = (at + done, to_at + done);
        // Fits: a stretch at most.
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), (len - done) as usize) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n as u64,
            Err(Errno::INTR) => {}
            Err(e) if is_unable(e) => return copy_by_hand(from, at + done, to, to_at + done, len - done),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, at: u64, to: &File, to_at: u64, len: u64) -> io::Result<()> {
    let (mut buffer, mut done) = (vec![0; PIECE], 0);
    while done < len {
        // Fits: a piece at most.
        let piece = &mut buffer[..(len - done).min(PIECE as u64) as usize];
        from.read_exact_at(piece, at + done)?;
        to.write_all_at(piece, to_at + done)?;
        done += piece.len() as u64;
    }
    Ok(())
}

/// A file system that does not know a call, or not for these offsets.
pub(super) fn is_unable(e: Errno) -> bool {
    matches!(e, Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::XDEV | Errno::PERM | Errno::FBIG)
}

/// Hashes a file that grows, up to where `copied` says that it is there; so many bytes of it the hasher has taken in already.
pub(super) fn hash_behind(
    file: &File,
    (mut at, mut hasher): (u64, Hasher),
    copied: mpsc::Receiver<u64>,
) -> io::Result<Digest> {
    let mut buffer = vec![0; PIECE];
    for end in copied {
        while at < end {
            // Fits: a piece at most.
            let piece = &mut buffer[..(end - at).min(PIECE as u64) as usize];
            file.read_exact_at(piece, at)?;
            hasher.update(piece);
            tally::bytes(piece.len());
            at += piece.len() as u64;
        }
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_digest_of_what_it_holds_and_its_source_stays_as_it_was() {
        for size in [0, 1, PIECE, 5_000_000] {
            let temp = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..size).map(|n| (n / 3) as u8).collect();
            let path = temp.path().join("from");
            fs::write(&path, &content).unwrap();
            let before = fs::metadata(&path).unwrap();
            let to = File::options().read(true).write(true).create_new(true).open(temp.path().join("to")).unwrap();
            let told = whole(&File::open(&path).unwrap(), &to).unwrap();
            assert_eq!(told, (Digest::of(&content), size as u64));
            assert!(fs::read(temp.path().join("to")).unwrap() == content);
            let after = fs::metadata(&path).unwrap();
            assert_eq!((before.nlink(), before.ctime_nsec()), (after.nlink(), after.ctime_nsec()));
        }
    }
}
