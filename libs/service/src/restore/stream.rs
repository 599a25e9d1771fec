//! Byte streams below TLS that end at a restore.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::futures::OwnedNotified,
};

use super::Restores;

/// A stream that neither sends nor receives once the machine was restored from a snapshot. TLS
/// around it sends nothing under the nonces that the machine used before: no record, no alert, no
/// `close_notify`. A task that reads is woken, so that its connection ends at once.
#[derive(Debug)]
pub struct UntilRestore<S> {
    stream: S,
    restores: Restores,
    /// Restores before the stream was wrapped.
    restored: u64,
    next: Pin<Box<OwnedNotified>>,
}

impl<S> UntilRestore<S> {
    /// Wraps a stream. The keys of TLS must be made after this call.
    #[must_use]
    pub fn new(stream: S, restores: &Restores) -> Self {
        Self {
            stream,
            restores: restores.clone(),
            // In this order, so that no restore is between the two.
            next: Box::pin(restores.next()),
            restored: restores.count(),
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.restores.count() == self.restored {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "this machine was restored from a snapshot: its earlier keys are no longer used",
        ))
    }

    /// Registers the task for the next restore.
    fn watch(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.check()?;
        while self.next.as_mut().poll(context).is_ready() {
            self.check()?;
            // That one was before the stream was wrapped.
            self.next.set(self.restores.next());
        }
        // One may have been between the check and the new registration.
        self.check()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for UntilRestore<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.watch(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for UntilRestore<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Ends the stream below TLS, which takes no key, also after a restore. Then it fails, so that
    /// no caller takes that for an orderly end.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        Poll::Ready(self.check())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::timeout,
    };

    use super::*;

    #[tokio::test]
    async fn a_stream_sends_and_receives_nothing_after_a_restore() {
        let restores = Restores::default();
        let (ours, mut theirs) = duplex(1000);
        let mut stream = UntilRestore::new(ours, &restores);
        stream.write_all(b"before").await.expect("written");
        let mut bytes = [0; 6];
        theirs.read_exact(&mut bytes).await.expect("received");
        theirs.write_all(b"before").await.expect("written");
        stream.read_exact(&mut bytes).await.expect("received");

        restores.note();
        theirs.write_all(b"after").await.expect("written");
        let parts = [io::IoSlice::new(b"after")];
        let errors = [
            stream.write(b"after").await.map(drop),
            stream.write_vectored(&parts).await.map(drop),
            stream.flush().await,
            stream.read(&mut bytes).await.map(drop),
            stream.shutdown().await,
        ];
        for error in errors {
            let error = error.expect_err("an error");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        }
        let sent = theirs.read(&mut bytes).await.expect("an end");
        assert_eq!(sent, 0, "nothing was sent");
    }

    #[tokio::test]
    async fn a_restore_ends_a_read_that_waits_and_earlier_ones_do_not() {
        let restores = Restores::default();
        restores.note();
        let (ours, _theirs) = duplex(1000);
        let mut stream = UntilRestore::new(ours, &restores);
        let mut bytes = [0; 6];
        let read = timeout(Duration::from_millis(50), stream.read(&mut bytes)).await;
        assert!(read.is_err(), "it waits: {read:?}");
        let noted = restores.clone();
        let reader = tokio::spawn(async move { stream.read(&mut [0; 6]).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        noted.note();
        let read = timeout(Duration::from_secs(10), reader).await;
        let read = read.expect("in time").expect("a task");
        assert!(read.is_err(), "{read:?}");
    }

    /// A restore between the registration and the count, as `new` meets it: it counts as earlier.
    #[tokio::test]
    async fn a_restore_while_a_stream_is_wrapped_ends_it_only_once() {
        let restores = Restores::default();
        let (ours, mut theirs) = duplex(1000);
        let next = Box::pin(restores.next());
        restores.note();
        let mut stream = UntilRestore {
            stream: ours,
            restored: restores.count(),
            restores: restores.clone(),
            next,
        };
        theirs.write_all(b"x").await.expect("written");
        assert_eq!(stream.read_u8().await.expect("received"), b'x');
        restores.note();
        stream.read_u8().await.expect_err("an end");
    }
}
