//! How is this stream compressed? Told by its first bytes: gzip, zstd, xz, bzip2, or not at all.

use std::io::{self, BufRead, Read};

use bzip2::bufread::MultiBzDecoder;
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

/// Memory that a stream may make a decoder use for its window; `zstd --ultra -22` writes 128 MiB.
pub const LARGEST_WINDOW: u32 = 27;

/// The content of `compressed`. Formats that hold several streams one after the other (gzip members, zstd frames) give them all.
///
/// # Errors
/// If the beginning can't be read.
pub fn decompress<'a>(
    mut compressed: impl BufRead + Send + 'a,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    Ok(match compressed.fill_buf()? {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(compressed)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(LARGEST_WINDOW)?;
            Box::new(decoder)
        }
        [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(compressed)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(XzReader::new(compressed, true)),
        _ => Box::new(compressed),
    })
}
