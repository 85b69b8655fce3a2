//! Notifications of the kernel that say that something changed. What changed is not read from them: the receiver looks at the
//! thing itself.
use std::{io, time::Duration};

use futures::FutureExt as _;
use log::{info, warn};
use nix::errno::Errno;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::time::sleep;

/// The first and the longest pause after an error of the socket. Whoever waits for changes looks at the thing from time to time
/// in any case, so that a socket which fails all the time need not make anybody look more often than once a minute.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// A subscription in this thread's network namespace. It ends when this is dropped.
pub(super) struct Changes {
    socket: TokioSocket,
    trouble: Trouble,
}

impl Changes {
    /// Subscribes to these groups of a netlink protocol, given as bits for bind(2): bit 0 is group 1. `of` names what is
    /// subscribed to, for the log.
    pub(super) fn listen(of: &'static str, protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = TokioSocket::new(protocol)?;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(Self { socket, trouble: Trouble::new(of) })
    }

    /// Waits for a change. All notifications that have arrived by then count as one. An error of the socket counts as a change,
    /// too, but comes after a pause, which grows as long as the errors last.
    pub(super) async fn next(&mut self) {
        let mut buffer = Vec::with_capacity(8192);
        let received = self.socket.recv(&mut buffer).await;
        if let Some(pause) = self.trouble.after(received.map(drop)) {
            return sleep(pause).await;
        }
        buffer.clear();
        while matches!(self.socket.recv(&mut buffer).now_or_never(), Some(Ok(_))) {
            buffer.clear();
        }
    }
}

/// What is wrong with a socket, and how long to wait before it is asked again.
struct Trouble {
    of: &'static str,
    error: Option<String>,
    pause: Duration,
}

impl Trouble {
    const fn new(of: &'static str) -> Self {
        Self { of, error: None, pause: PAUSE.0 }
    }

    /// Takes in what the socket answered. Returns how long to wait, if the answer was an error, which is logged if it is another
    /// one than before.
    fn after(&mut self, received: io::Result<()>) -> Option<Duration> {
        let error = match received {
            // If messages were lost, something changed as well, and the socket goes on.
            Err(error) if error.raw_os_error() != Some(Errno::ENOBUFS as i32) => error.to_string(),
            _ => {
                if self.error.take().is_some() {
                    info!("changes of {} are heard again", self.of);
                }
                self.pause = PAUSE.0;
                return None;
            }
        };
        if self.error.as_ref() != Some(&error) {
            warn!("changes of {} are not heard, and found at regular looks alone: {error}", self.of);
            self.error = Some(error);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE.1);
        Some(pause)
    }
}

/// Waits for the next change of a subscription, or for ever where there is none.
pub async fn told(next: Option<impl Future<Output = ()>>) {
    match next {
        Some(next) => next.await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_errors_grows_up_to_its_bound_and_begins_anew() {
        let mut trouble = Trouble::new("nothing");
        let failed = |errno: Errno| Err(io::Error::from_raw_os_error(errno as i32));
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pauses.extend(trouble.after(failed(Errno::EBADF)));
        }
        assert_eq!((pauses.len(), pauses[0]), (12, PAUSE.0));
        assert!(pauses.windows(2).all(|pair| pair[1] == (pair[0] * 2).min(PAUSE.1)), "{pauses:?}");
        assert_eq!(pauses[11], PAUSE.1);
        // What was lost is heard of at once.
        assert_eq!(trouble.after(failed(Errno::ENOBUFS)), None);
        assert_eq!(trouble.after(failed(Errno::EBADF)), Some(PAUSE.0));
        assert_eq!(trouble.after(Ok(())), None);
    }

    #[test]
    fn an_error_is_news_once_and_again_when_it_changes() {
        let mut trouble = Trouble::new("nothing");
        let mut told = |errno: Option<Errno>| {
            let before = trouble.error.clone();
            let received = errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno as i32)));
            trouble.after(received);
            before != trouble.error
        };
        let errors = [None, Some(Errno::EBADF), Some(Errno::EBADF), Some(Errno::EIO), Some(Errno::EIO), None];
        assert_eq!(errors.map(&mut told), [false, true, false, true, false, true]);
    }
}
