//! Where does one line of a step's output end? Bytes in, lines out; pure.

/// A line longer than this is given out in pieces, so that memory stays bounded.
const LIMIT_BYTES: usize = 64 * 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes more bytes and gives out each line that is whole by now, without its line end. Bytes that aren't UTF-8 are replaced.
    pub(super) fn push(&mut self, bytes: &[u8], output: &mut dyn FnMut(&str)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                self.give(output);
            }
            while self.partial.len() >= LIMIT_BYTES {
                let rest = self.partial.split_off(LIMIT_BYTES);
                self.give(output);
                self.partial = rest;
            }
        }
    }

    /// Gives out what is left at the end.
    pub(super) fn finish(mut self, output: &mut dyn FnMut(&str)) {
        if !self.partial.is_empty() {
            self.give(output);
        }
    }

    fn give(&mut self, output: &mut dyn FnMut(&str)) {
        output(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<String> {
        let mut seen = Vec::new();
        let mut lines = Lines::default();
        for chunk in chunks {
            lines.push(chunk, &mut |line| seen.push(line.to_owned()));
        }
        lines.finish(&mut |line| seen.push(line.to_owned()));
        seen
    }

    #[test]
    fn lines_are_whole_wherever_the_bytes_were_cut() {
        for (chunks, expected) in [
            (vec![&b"a\nb"[..], b"c\n"], vec!["a", "bc"]),
            (vec![b"\n\n"], vec!["", ""]),
            (vec![b"no end"], vec!["no end"]),
            (vec![b"\xff\n"], vec!["\u{fffd}"]),
            (vec![], vec![]),
        ] {
            assert_eq!(split(&chunks), expected);
        }
    }

    #[test]
    fn an_endless_line_is_given_out_in_pieces() {
        let lengths: Vec<usize> = split(&[&vec![b'x'; LIMIT_BYTES + 5], b"\n"])
            .iter()
            .map(String::len)
            .collect();
        assert_eq!(lengths, [LIMIT_BYTES, 5]);
    }
}
