//! How do the bytes of one download reach a second taker, without the slower of the two holding up the other?
//!
//! ```text
//! download ─► unpack                      as fast as it can
//!        └──► waiting bytes ─► upload     as long as it keeps up; else it goes on with a download of its own, from where it is
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Of all blobs of an image together: two pieces of an upload, an eighth of the budget of 128 MiB for the whole builder.
const MOST_WAITING_BYTES: usize = 16 << 20;

/// Gives bytes on; those that nobody takes are not kept.
#[derive(Debug)]
pub struct Feeder {
    sender: Option<mpsc::UnboundedSender<Bytes>>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// Takes bytes from the start of a blob on, to its end or to where it fell behind.
#[derive(Debug)]
pub struct Fed {
    receiver: mpsc::UnboundedReceiver<Bytes>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// One pair for each of `blobs` blobs.
#[must_use]
pub fn tee(blobs: usize) -> (Vec<Feeder>, Vec<Fed>) {
    let waiting_bytes = Arc::<AtomicUsize>::default();
    let pair = |_| {
        let (sender, receiver) = mpsc::unbounded_channel();
        let feeder = Feeder {
            sender: Some(sender),
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        let fed = Fed {
            receiver,
            waiting_bytes: Arc::clone(&waiting_bytes),
        };
        (feeder, fed)
    };
    (0..blobs).map(pair).unzip()
}

impl Feeder {
    /// The next bytes of the blob.
    pub fn feed(&mut self, bytes: &Bytes) {
        let Some(sender) = &self.sender else {
            return;
        };
        let waiting = self.waiting_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        let is_taken =
            waiting + bytes.len() <= MOST_WAITING_BYTES && sender.send(bytes.clone()).is_ok();
        if !is_taken {
            self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
            self.sender = None;
        }
    }
}

impl Fed {
    /// The next bytes; none at the end, or once too many were waiting.
    pub async fn next(&mut self) -> Option<Bytes> {
        let bytes = self.receiver.recv().await?;
        self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        Some(bytes)
    }
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.receiver.close();
        while let Ok(bytes) = self.receiver.try_recv() {
            self.waiting_bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn taken(mut fed: Fed) -> usize {
        let mut taken = 0;
        while let Some(bytes) = fed.next().await {
            taken += bytes.len();
        }
        taken
    }

    #[tokio::test]
    async fn who_falls_behind_gets_the_start_of_the_blob_and_nobody_else_does() {
        let (mut feeders, mut fed) = tee(3);
        let piece = Bytes::from(vec![0; 6 << 20]);
        // Not taken at all: what waited makes room.
        feeders[2].feed(&piece);
        drop(fed.pop());
        for _ in 0..4 {
            feeders[0].feed(&piece);
        }
        feeders[1].feed(&Bytes::from_static(b"x"));
        drop(feeders);
        let last = fed.pop().unwrap();
        assert_eq!(taken(fed.pop().unwrap()).await, 12 << 20);
        assert_eq!(taken(last).await, 1);
    }
}
