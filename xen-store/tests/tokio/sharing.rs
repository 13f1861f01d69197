//! Many tasks on one connection.

use crate::runtimes::on_each;
use crate::server;

/// Two workers that read the socket must not hand the bytes over in another order.
#[test]
fn each_task_gets_the_value_of_its_own_node() {
    const TASKS: usize = 64;
    const READS: usize = 300;
    on_each(|| async {
        let (_server, store) = server();
        for task in 0..TASKS {
            store.write(&path(task), value(task)).await.unwrap();
        }
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..READS {
                        let read = store.read(&path(task)).await.unwrap();
                        assert_eq!(read.escape_ascii().to_string(), value(task));
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
}

fn path(task: usize) -> String {
    format!("/race/{task}")
}

/// 400 bytes that name the node they belong to.
fn value(task: usize) -> String {
    format!("{task:04}").repeat(100)
}
