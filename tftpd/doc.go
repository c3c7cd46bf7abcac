package tftpd
