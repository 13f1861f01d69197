//! The Mini-OS protocol: all arguments in one string, `/vm/UUID/image/dmargs`.
//!
//! libxl writes it for its older stubdomain: every argument with a space before it, `-sdl`, `-M`
//! and `xenfv` taken out. An argument with a space in it cannot be distinguished from two. A Linux
//! stubdomain does not read the string; this module serves to report that, and to show what the
//! toolstack meant. (`tools/libs/light/libxl_dm.c`, `libxl__write_stub_dmargs`.)

/// The words of the string. An argument that held a space has become several.
pub fn split(dmargs: &[u8]) -> Vec<Vec<u8>> {
    let words = dmargs.split(|&byte| byte == b' ');
    words
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// The message for a guest that has this string and no `dm-argv`.
pub const MISMATCH: &str = "the toolstack wrote Mini-OS's `dmargs` string, which a Linux stubdomain does not read: it chose \
     the old device model, as Xen up to 4.20 does when a guest with a stubdomain names no device model; set \
     device_model_version=\"qemu-xen\" in the guest's configuration and create it again";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_lies_between_spaces() {
        assert_eq!(
            split(b" -d 5  -domain-name my guest "),
            [&b"-d"[..], b"5", b"-domain-name", b"my", b"guest"]
        );
        assert!(split(b"  ").is_empty());
    }
}
