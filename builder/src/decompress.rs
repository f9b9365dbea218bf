//! How is this stream compressed? Told by its first bytes: gzip, zstd, xz, bzip2, or not at all.
//!
//! What a stream asks for as its decoder's window is memory: more than a limit is refused, with a [`WindowTooLarge`].

use std::io::{self, BufRead, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// Of a layer of an image, 32 MiB: six are unpacked at once, and all of them fit into the budget of 256 MiB. `zstd -19` has 8 MiB.
pub const LARGEST_LAYER_WINDOW: u32 = 25;
/// Of any other stream, 128 MiB, which is what `zstd --ultra -22` has; `xz -9` has 64 MiB.
const LARGEST_WINDOW: u32 = 27;

/// A stream needs more memory than its decoder may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is compressed with a window of more than {} MiB, the most that is taken here", 1 << (log - 20))]
pub struct WindowTooLarge {
    /// The limit in bytes, as a power of two.
    log: u32,
}

impl WindowTooLarge {
    /// True if that is what `error` says.
    #[must_use]
    pub fn is_in(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// A decoder whose error about its window names the limit.
#[derive(Debug)]
struct Limited<D> {
    decoder: D,
    log: u32,
}

impl<D: Read> Read for Limited<D> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// zstd's words; it gives all its errors one kind.
        const OF_ZSTD: &str = "Frame requires too much memory for decoding";
        self.decoder.read(buffer).map_err(|error| {
            if error.kind() == io::ErrorKind::OutOfMemory || error.to_string() == OF_ZSTD {
                let log = self.log;
                io::Error::new(io::ErrorKind::InvalidData, WindowTooLarge { log })
            } else {
                error
            }
        })
    }
}

/// The content of zstd frames with windows up to `2^largest_window` bytes.
pub struct ZstdReader<R: BufRead>(Limited<zstd::stream::read::Decoder<'static, R>>);

impl<R: BufRead> ZstdReader<R> {
    /// Of the frames in `compressed`.
    ///
    /// # Errors
    /// If there is no memory.
    pub fn new(compressed: R, largest_window: u32) -> io::Result<Self> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
        decoder.window_log_max(largest_window)?;
        Ok(Self(Limited {
            decoder,
            log: largest_window,
        }))
    }

    /// What it reads from.
    pub fn into_inner(self) -> R {
        self.0.decoder.finish()
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// The content of `compressed`. Formats that hold several streams one after the other (gzip members, zstd frames) give them all.
///
/// # Errors
/// If the beginning can't be read. Reading fails with a [`WindowTooLarge`] where the window would be larger than 128 MiB.
pub fn decompress<'a>(
    mut compressed: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    /// What the decoder of xz needs besides its window, generously.
    const BESIDES_KIB: u32 = 1 << 10;
    Ok(match compressed.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(compressed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(ZstdReader::new(compressed, LARGEST_WINDOW)?),
        [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(compressed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let most_kib = (1 << (LARGEST_WINDOW - 10)) + BESIDES_KIB;
            Box::new(Limited {
                decoder: XzReader::new_mem_limit(compressed, true, most_kib),
                log: LARGEST_WINDOW,
            })
        }
        _ => Box::new(compressed),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// One that says it needs a window of `2^log` bytes; its content is empty.
    fn zstd_of(log: u32) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(b"content").unwrap();
        // what is not known to be small has the whole window
        encoder.flush().unwrap();
        encoder.finish().unwrap()
    }

    /// The header of a stream whose block needs a dictionary of 2 GiB.
    fn xz_of_2_gib() -> Vec<u8> {
        let mut stream = b"\xfd7zXZ\0\0\0".to_vec();
        stream.extend(crc32fast::hash(&[0, 0]).to_le_bytes());
        let block = [2, 0, 0x21, 1, 38, 0, 0, 0];
        stream.extend(block);
        stream.extend(crc32fast::hash(&block).to_le_bytes());
        stream
    }

    #[test]
    fn a_window_that_needs_too_much_memory_is_refused_with_the_limit() {
        let layer = |bytes: &[u8]| {
            let mut content = String::new();
            let mut reader = ZstdReader::new(bytes, LARGEST_LAYER_WINDOW)?;
            reader.read_to_string(&mut content).map(|_| content)
        };
        let other = |bytes: &[u8]| {
            let mut content = String::new();
            decompress(bytes)?
                .read_to_string(&mut content)
                .map(|_| content)
        };
        for (got, limit) in [
            (layer(&zstd_of(25)), None),
            (layer(&zstd_of(26)), Some("32 MiB")),
            (other(&zstd_of(27)), None),
            (other(&zstd_of(28)), Some("128 MiB")),
            (other(&xz_of_2_gib()), Some("128 MiB")),
        ] {
            match (got, limit) {
                (Ok(content), None) => assert_eq!(content, "content"),
                (Err(error), Some(limit)) => {
                    assert!(WindowTooLarge::is_in(&error), "{error}");
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
                    assert!(error.to_string().contains(limit), "{error}");
                }
                (got, limit) => panic!("{got:?} {limit:?}"),
            }
        }
    }
}
