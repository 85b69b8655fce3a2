//! The tasks of connections to the kernel.
use tokio::task::JoinSet;

/// A connection's task, which ends when this is dropped. Left to itself, it would end only at the kernel's next message, and say in
/// the log that nobody wants that.
pub(super) fn running(connection: impl Future<Output = ()> + Send + 'static) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(connection);
    task
}
