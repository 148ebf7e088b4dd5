//! The baseline's loads: what raw quinn does for the same work, both ends.
//!
//! The far end splits what arrives into messages and counts each one. It has no mailboxes, so nothing is handed from one
//! task to another, but for the load `into a channel`, which hands each message to another task as a mailbox does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use quinn::{Connection, Endpoint, ReadError, RecvStream, SendStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::load::Ask;

/// What a stream carries is its first byte.
const MESSAGES: u8 = 1;
const MESSAGES_TO_CHANNEL: u8 = 2;
const LARGE_MESSAGE: u8 = 3;
const CALL: u8 = 4;
const CALLS: u8 = 5;

/// How many bytes of frames are written at once.
const BATCH: usize = 64 * 1024;
const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// As many as a mailbox of this library holds.
const CHANNEL: usize = 1024;

type Ended = Box<dyn std::error::Error + Send + Sync>;

// The far end.

/// Takes connections and serves whatever their streams carry.
pub(crate) async fn serve(endpoint: Endpoint, arrived: Arc<AtomicU64>) {
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else { continue };
        tokio::spawn(take_calls(connection.clone()));
        tokio::spawn(take_messages(connection, arrived.clone()));
    }
}

async fn take_messages(connection: Connection, arrived: Arc<AtomicU64>) {
    while let Ok(stream) = connection.accept_uni().await {
        tokio::spawn(read_messages(stream, arrived.clone()));
    }
}

async fn take_calls(connection: Connection) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(answer(send, receive));
    }
}

/// A load that is taken off cuts its streams anywhere, so their ends are no errors.
async fn read_messages(mut stream: RecvStream, arrived: Arc<AtomicU64>) -> Result<(), Ended> {
    let mut kind = [0];
    stream.read_exact(&mut kind).await?;
    match kind[0] {
        MESSAGES => count_frames(Frames::new(stream), &arrived).await,
        MESSAGES_TO_CHANNEL => {
            let (to_reader, mut inbox) = mpsc::channel::<Bytes>(CHANNEL);
            tokio::spawn(async move {
                while inbox.recv().await.is_some() {
                    arrived.fetch_add(1, Ordering::Relaxed);
                }
            });
            deliver_frames(Frames::new(stream), to_reader).await
        }
        _ => {
            stream.read_to_end(MESSAGE_MAX).await?;
            arrived.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }
}

async fn count_frames(mut frames: Frames, arrived: &AtomicU64) -> Result<(), Ended> {
    while frames.read().await? {
        while frames.split().is_some() {
            arrived.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

async fn deliver_frames(mut frames: Frames, to_reader: mpsc::Sender<Bytes>) -> Result<(), Ended> {
    while frames.read().await? {
        while let Some(frame) = frames.split() {
            to_reader.send(frame).await?;
        }
    }
    Ok(())
}

async fn answer(mut send: SendStream, mut receive: RecvStream) -> Result<(), Ended> {
    let Some(first) = receive.read_chunk(usize::MAX, true).await? else { return Ok(()) };
    if first.bytes[0] == CALLS {
        return answer_many(send, Frames { stream: receive, buffer: first.bytes[1..].into() }).await;
    }
    let mut question = BytesMut::from(&first.bytes[1..]);
    while let Some(chunk) = receive.read_chunk(usize::MAX, true).await? {
        question.extend_from_slice(&chunk.bytes);
    }
    send.write_chunk(question.freeze()).await?;
    send.finish()?;
    Ok(())
}

async fn answer_many(mut send: SendStream, mut frames: Frames) -> Result<(), Ended> {
    let mut answers = Vec::new();
    loop {
        while let Some(question) = frames.split() {
            put_frame(&mut answers, &[&question]);
        }
        send.write_all(&answers).await?;
        answers.clear();
        if !frames.read().await? {
            return Ok(());
        }
    }
}

// Frames: a length of four bytes, and as many bytes.

fn put_frame(out: &mut Vec<u8>, parts: &[&[u8]]) {
    out.put_u32(parts.iter().map(|part| part.len()).sum::<usize>() as u32);
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

struct Frames {
    stream: RecvStream,
    buffer: BytesMut,
}

impl Frames {
    fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads what has come; false at the end.
    async fn read(&mut self) -> Result<bool, ReadError> {
        let chunk = self.stream.read_chunk(usize::MAX, true).await?;
        if let Some(chunk) = &chunk {
            self.buffer.extend_from_slice(&chunk.bytes);
        }
        Ok(chunk.is_some())
    }

    /// The next frame that has come whole.
    fn split(&mut self) -> Option<Bytes> {
        let length = u32::from_be_bytes(self.buffer.get(..4)?.try_into().expect("four bytes")) as usize;
        if self.buffer.len() < 4 + length {
            return None;
        }
        self.buffer.advance(4);
        Some(self.buffer.split_to(length).freeze())
    }
}

// The near end.

/// One stream of framed messages, many in each write.
pub(crate) fn messages(tasks: &mut JoinSet<()>, connection: &Connection, size: usize) {
    flood(tasks, connection, MESSAGES, size);
}

/// The same, and the far end hands each message to another task.
pub(crate) fn messages_to_channel(tasks: &mut JoinSet<()>, connection: &Connection, size: usize) {
    flood(tasks, connection, MESSAGES_TO_CHANNEL, size);
}

fn flood(tasks: &mut JoinSet<()>, connection: &Connection, kind: u8, size: usize) {
    let connection = connection.clone();
    tasks.spawn(async move {
        let message = vec![7; size];
        let mut stream = connection.open_uni().await.unwrap();
        let mut batch = vec![kind];
        loop {
            while batch.len() < BATCH {
                put_frame(&mut batch, &[&message]);
            }
            stream.write_all(&batch).await.unwrap();
            batch.clear();
        }
    });
}

/// When a sender of large messages goes on to the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Once quinn has taken the last one, as far as its windows go.
    Taken,
    /// Once the far end has acknowledged the last one, so that there are no more under way than senders.
    Acknowledged,
}

/// Senders that each write one large message after the other, every one on a stream of its own.
pub(crate) fn large_messages(
    tasks: &mut JoinSet<()>,
    connection: &Connection,
    senders: usize,
    size: usize,
    pace: Pace,
) {
    let message = Bytes::from(vec![7; size]);
    for _ in 0..senders {
        let (connection, message) = (connection.clone(), message.clone());
        tasks.spawn(async move {
            loop {
                let mut stream = connection.open_uni().await.unwrap();
                stream.write_all(&[LARGE_MESSAGE]).await.unwrap();
                stream.write_chunk(message.clone()).await.unwrap();
                stream.finish().unwrap();
                if pace == Pace::Acknowledged {
                    stream.stopped().await.unwrap();
                }
            }
        });
    }
}

/// Calls on a stream each.
#[derive(Clone)]
pub(crate) struct StreamCalls {
    connection: Connection,
    request: Bytes,
}

impl StreamCalls {
    pub(crate) fn new(connection: &Connection, size: usize) -> Self {
        let mut request = vec![7; size + 1];
        request[0] = CALL;
        Self { connection: connection.clone(), request: request.into() }
    }
}

impl Ask for StreamCalls {
    async fn ask(&self) {
        let (mut send, mut receive) = self.connection.open_bi().await.unwrap();
        send.write_chunk(self.request.clone()).await.unwrap();
        send.finish().unwrap();
        let answer = receive.read_to_end(MESSAGE_MAX).await.unwrap();
        assert_eq!(answer.len() + 1, self.request.len());
    }
}

/// Calls that share one stream: numbered requests, a task that writes them in batches, and one that reads answers.
#[derive(Clone)]
pub(crate) struct MuxCalls {
    requests: mpsc::UnboundedSender<(u64, Bytes)>,
    waiting: Arc<Mutex<Waiting>>,
    question: Bytes,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Bytes>>,
}

impl MuxCalls {
    /// Opens the stream, which ends with the last caller.
    pub(crate) fn start(connection: &Connection, size: usize) -> Self {
        let (requests, queue) = mpsc::unbounded_channel();
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let (connection, to_reader) = (connection.clone(), waiting.clone());
        tokio::spawn(async move {
            let (send, receive) = connection.open_bi().await?;
            tokio::try_join!(write_requests(send, queue), read_answers(receive, to_reader))
        });
        Self { requests, waiting, question: vec![7; size].into() }
    }
}

impl Ask for MuxCalls {
    async fn ask(&self) {
        let (done, answer) = oneshot::channel();
        let id = {
            let mut waiting = self.waiting.lock().unwrap();
            waiting.next += 1;
            let id = waiting.next;
            waiting.answers.insert(id, done);
            id
        };
        self.requests.send((id, self.question.clone())).unwrap();
        assert_eq!(answer.await.unwrap().len(), self.question.len());
    }
}

async fn write_requests(mut send: SendStream, mut queue: mpsc::UnboundedReceiver<(u64, Bytes)>) -> Result<(), Ended> {
    let mut batch = vec![CALLS];
    let mut requests = Vec::new();
    while queue.recv_many(&mut requests, CHANNEL).await > 0 {
        for (id, question) in requests.drain(..) {
            put_frame(&mut batch, &[&id.to_be_bytes(), &question]);
        }
        send.write_all(&batch).await?;
        batch.clear();
    }
    Ok(())
}

async fn read_answers(receive: RecvStream, waiting: Arc<Mutex<Waiting>>) -> Result<(), Ended> {
    let mut frames = Frames::new(receive);
    while frames.read().await? {
        while let Some(mut answer) = frames.split() {
            let id = answer.get_u64();
            let done = waiting.lock().unwrap().answers.remove(&id);
            if let Some(done) = done {
                let _ = done.send(answer);
            }
        }
    }
    Ok(())
}
