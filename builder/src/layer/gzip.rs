//! How do many cores make one gzip member? Blocks deflate on their own and join into a single stream.
//!
//! Nodes read only the first member of a layer, so the blocks must not be members of their own. As pigz does it: each block starts
//! with the 32 KiB before it as dictionary and ends at a byte boundary (sync flush); an empty final block, the combined CRC-32 and
//! the length close the stream. The bytes depend on the content and the level only, never on the number of threads.
//!
//! At most [`BLOCKS_PER_THREAD`] blocks per thread are in flight, each with its compressed form: some 3 MiB a thread.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use flate2::{Compress, Compression, FlushCompress, Status};

/// Uncompressed bytes per block: large enough that the flush between blocks costs nothing (5 bytes each), small enough that a layer of a few
/// megabytes keeps every core busy.
const BLOCK_BYTES: usize = 512 << 10;
/// How far back deflate looks.
const WINDOW_BYTES: usize = 32 << 10;
/// Keeps a thread busy while the writer waits for another one's block.
const BLOCKS_PER_THREAD: usize = 3;
/// Magic, deflate, no flags, no time, no extra flags, unknown system: the same for everybody.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// A final block without content.
const LAST_BLOCK: [u8; 2] = [3, 0];

/// A block's way back from the thread that compressed it.
struct Compressed {
    bytes: Vec<u8>,
    checksum: crc32fast::Hasher,
    size_bytes: usize,
}

struct Job {
    block: Arc<Vec<u8>>,
    previous: Option<Arc<Vec<u8>>>,
    done: Sender<io::Result<Compressed>>,
}

/// Takes the uncompressed bytes; see [`compress`].
pub struct Blocks {
    block: Vec<u8>,
    previous: Option<Arc<Vec<u8>>>,
    jobs: SyncSender<Job>,
    order: SyncSender<Receiver<io::Result<Compressed>>>,
}

/// Writes what `produce` writes to `sink` as one gzip member, with `threads` compressing threads, and returns both results.
///
/// # Errors
/// The first of: the sink's, the producer's.
pub fn compress<S: Write + Send, T, E: From<io::Error>>(
    level: u32,
    threads: usize,
    sink: S,
    produce: impl FnOnce(&mut Blocks) -> Result<T, E>,
) -> Result<(T, S), E> {
    let threads = threads.max(1);
    let (jobs, work) = sync_channel(threads * BLOCKS_PER_THREAD);
    let (order, ordered) = sync_channel(threads * BLOCKS_PER_THREAD);
    let work = Arc::new(Mutex::new(work));
    thread::scope(|scope| {
        for _ in 0..threads {
            let work = Arc::clone(&work);
            scope.spawn(move || compress_blocks(level, &work));
        }
        // The threads hold the only receivers: if they all end, sending a job fails instead of waiting for ever.
        drop(work);
        let writer = scope.spawn(move || write_member(sink, &ordered));
        let mut blocks = Blocks {
            block: Vec::with_capacity(BLOCK_BYTES),
            previous: None,
            jobs,
            order,
        };
        let produced = produce(&mut blocks).and_then(|value| {
            blocks.submit()?;
            Ok(value)
        });
        drop(blocks);
        let written = writer
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the writing thread ended early")));
        match (produced, written) {
            // If the sink fails the producer only sees a closed channel; the sink knows why.
            (_, Err(error)) => Err(error.into()),
            (Err(error), Ok(_)) => Err(error),
            (Ok(value), Ok(sink)) => Ok((value, sink)),
        }
    })
}

impl Blocks {
    fn submit(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = Arc::new(std::mem::replace(
            &mut self.block,
            Vec::with_capacity(BLOCK_BYTES),
        ));
        let previous = self.previous.replace(Arc::clone(&block));
        let (done, result) = channel();
        let closed = |()| io::Error::from(io::ErrorKind::BrokenPipe);
        self.order.send(result).map_err(|_| closed(()))?;
        self.jobs
            .send(Job {
                block,
                previous,
                done,
            })
            .map_err(|_| closed(()))
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK_BYTES {
            self.submit()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn compress_blocks(level: u32, work: &Mutex<Receiver<Job>>) {
    loop {
        let job = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            block,
            previous,
            done,
        }) = job
        else {
            return;
        };
        let dictionary = previous.as_ref().map_or(&[][..], |previous| {
            &previous[previous.len().saturating_sub(WINDOW_BYTES)..]
        });
        // If nobody waits for the block any more, the writer has failed and says why itself.
        if done.send(deflate(level, &block, dictionary)).is_err() {
            return;
        }
    }
}

fn deflate(level: u32, block: &[u8], dictionary: &[u8]) -> io::Result<Compressed> {
    let mut compressor = Compress::new(Compression::new(level), false);
    if !dictionary.is_empty() {
        compressor
            .set_dictionary(dictionary)
            .map_err(io::Error::other)?;
    }
    let mut bytes = Vec::with_capacity(block.len() / 2 + 64);
    loop {
        let taken = usize::try_from(compressor.total_in()).map_err(io::Error::other)?;
        let status = compressor
            .compress_vec(&block[taken..], &mut bytes, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        // A flush is complete when it leaves room in the output.
        if bytes.len() < bytes.capacity() && status != Status::StreamEnd {
            break;
        }
        bytes.reserve(block.len() / 4 + 64);
    }
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(block);
    Ok(Compressed {
        bytes,
        checksum,
        size_bytes: block.len(),
    })
}

fn write_member<S: Write>(
    mut sink: S,
    ordered: &Receiver<Receiver<io::Result<Compressed>>>,
) -> io::Result<S> {
    sink.write_all(&HEADER)?;
    let mut checksum = crc32fast::Hasher::new();
    // The trailer holds the length modulo 2^32.
    let mut size_bytes = 0_u32;
    for result in ordered {
        let compressed = result
            .recv()
            .map_err(|_| io::Error::other("a compressing thread ended early"))??;
        sink.write_all(&compressed.bytes)?;
        checksum.combine(&compressed.checksum);
        size_bytes = size_bytes.wrapping_add(compressed.size_bytes as u32);
    }
    sink.write_all(&LAST_BLOCK)?;
    sink.write_all(&checksum.finalize().to_le_bytes())?;
    sink.write_all(&size_bytes.to_le_bytes())?;
    sink.flush()?;
    Ok(sink)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::bufread::GzDecoder;
    use proptest::prelude::*;

    use super::*;

    fn gzip(level: u32, threads: usize, content: &[u8]) -> Vec<u8> {
        let ((), bytes) = compress(level, threads, Vec::new(), |blocks| {
            blocks.write_all(content)
        })
        .unwrap();
        bytes
    }

    /// Text that repeats across block borders, and noise that doesn't compress.
    fn content(length: usize, noise: bool) -> Vec<u8> {
        let mut state = 1_u64;
        (0..length)
            .map(|index| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if noise {
                    (state >> 33) as u8
                } else {
                    b"key = value\n"[index % 12]
                }
            })
            .collect()
    }

    /// As nodes read it: the first member only; what is left must be nothing.
    fn first_member(bytes: &[u8]) -> (Vec<u8>, usize) {
        let mut decoder = GzDecoder::new(bytes);
        let mut content = Vec::new();
        decoder.read_to_end(&mut content).unwrap();
        (content, decoder.into_inner().len())
    }

    #[test]
    fn every_length_around_a_block_border_is_one_member_with_the_whole_content() {
        for length in [
            0,
            1,
            BLOCK_BYTES - 1,
            BLOCK_BYTES,
            BLOCK_BYTES + 1,
            3 * BLOCK_BYTES + 7,
        ] {
            for noise in [false, true] {
                let content = content(length, noise);
                let (decoded, rest) = first_member(&gzip(2, 2, &content));
                assert!(decoded == content, "{length} bytes, noise: {noise}");
                assert_eq!(rest, 0, "{length} bytes, noise: {noise}");
            }
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_the_bytes() {
        let content = content(5 * BLOCK_BYTES + 3, false);
        let serial = gzip(6, 1, &content);
        for threads in [2, 3, 8] {
            assert!(gzip(6, threads, &content) == serial, "{threads} threads");
        }
    }

    #[test]
    fn a_failing_sink_ends_the_producer_and_its_error_is_the_one_returned() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("disk full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let produce = |blocks: &mut Blocks| loop {
            blocks.write_all(&[0; 4096])?;
        };
        let result: io::Result<((), Full)> = compress(1, 2, Full, produce);
        assert_eq!(result.err().unwrap().to_string(), "disk full");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_content_at_any_level_comes_back(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            repeat in 1_usize..200,
            level in 0_u32..=9,
        ) {
            let content = pieces.concat().repeat(repeat);
            let (decoded, rest) = first_member(&gzip(level, 3, &content));
            prop_assert!(decoded == content);
            prop_assert_eq!(rest, 0);
        }
    }
}
